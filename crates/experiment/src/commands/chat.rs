//! `unsay chat`: a conversation in the terminal.

use std::io::{BufRead, IsTerminal};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use signal_hook::consts::SIGINT;
use signal_hook::iterator::Signals;
use unsay_data::{Message, Tokenizer};
use unsay_model::{Listener, Sampling};

use super::Usage;
use super::named::{Named, refuse};
use super::open;
use super::voice::{Voice, say};
use crate::cli::ChatArgs;
use crate::output::speak;
use crate::store::write_atomic;

/// Stands before what is typed.
const SIGN: &str = "> ";

/// Talks until the user leaves or the input ends.
pub fn chat(args: &ChatArgs) -> Result<ExitCode> {
    unsay_model::memory::restart_with_settings();
    let place = match Named::find(&args.what)? {
        Named::Model(place) => place,
        Named::Manifest(file) => {
            let what = format!(
                "`{}` is a file; chat wants a model folder or a name of the catalog",
                file.display()
            );
            return Err(Usage(format!("{what}\nhint: unsay generate compares the arms of a manifest")).into());
        }
    };
    let sampling = args.sampling.sampling(args.greedy)?;
    let voice = Voice::load(&place, &args.model, open(&args.device)?)?;
    let sampling = args.sampling.within(sampling, voice.positions());
    if !voice.tokenizer.is_chat() {
        refuse(&args.model.given()[1..2], "this model", "it has no chat template")?;
    }
    let terminal = std::io::stdin().is_terminal();
    let stop = Interrupt::listen(terminal)?;
    if terminal {
        let (millions, positions) = (voice.n_weights as f64 / 1e6, voice.positions());
        say(&format!(
            "{}: {millions:.0} million parameters, {positions} positions. /quit leaves, Ctrl-C stops a reply, `unsay chat --help` shows more.",
            args.what
        ));
    }
    let mut talk = Talk {
        voice,
        sampling,
        seed: args.sample_seed,
        turn: 0,
        system: args.model.system.clone(),
        history: Vec::new(),
        stop,
        terminal,
    };
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if terminal {
            speak(SIGN)?;
        }
        let Some(line) = lines.next() else { break };
        let line = line.context("cannot read what was said")?;
        match (line.trim(), talk.command(line.trim())?) {
            (_, Some(ControlFlow::Break(()))) => return Ok(ExitCode::SUCCESS),
            (_, Some(ControlFlow::Continue(()))) | ("", None) => {}
            (text, None) => talk.answer(text)?,
        }
    }
    if terminal {
        speak("\n")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Ctrl-C: while a reply is made it stops it.
struct Interrupt {
    speaking: Arc<AtomicBool>,
    asked: Arc<AtomicBool>,
}

impl Interrupt {
    /// Between replies Ctrl-C says how to leave; where nobody types it ends the program, as usual.
    fn listen(terminal: bool) -> Result<Self> {
        let (speaking, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let mut signals = Signals::new([SIGINT]).context("cannot listen for signals")?;
        let heard = (Arc::clone(&speaking), Arc::clone(&asked));
        std::thread::spawn(move || {
            for _ in signals.forever() {
                if heard.0.load(Ordering::Relaxed) {
                    heard.1.store(true, Ordering::Relaxed);
                } else if terminal {
                    say("\n/quit or Ctrl-D leaves");
                    // A terminal that has gone is found by what reads it.
                    drop(speak(SIGN));
                } else {
                    // The exit code that a shell gives a program which this signal ended.
                    std::process::exit(130);
                }
            }
        });
        Ok(Self { speaking, asked })
    }
}

/// A conversation.
struct Talk {
    voice: Voice,
    sampling: Sampling,
    seed: u64,
    /// Replies so far, forgotten ones too: each has draws of its own.
    turn: usize,
    system: Option<String>,
    history: Vec<Message>,
    stop: Interrupt,
    terminal: bool,
}

impl Talk {
    /// Does what a line with a slash says; none when the line is said to the model.
    fn command(&mut self, line: &str) -> Result<Option<ControlFlow<()>>> {
        let Some(command) = line.strip_prefix('/') else {
            return Ok(None);
        };
        let (word, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = rest.trim();
        match (word, rest) {
            ("quit", "") => return Ok(Some(ControlFlow::Break(()))),
            ("reset", "") => {
                self.history.clear();
                say("the conversation is forgotten");
            }
            ("system", _) if !self.voice.tokenizer.is_chat() => self.complain("this model has no chat template")?,
            ("system", _) => {
                self.system = Some(rest.to_owned()).filter(|text| !text.is_empty());
                self.history.clear();
                say("a new conversation with this instruction");
            }
            ("save", "") => self.complain("`/save` wants a file")?,
            ("save", file) => match self.save(Path::new(file)) {
                Ok(()) => say(&format!("saved to {file}")),
                Err(error) => self.complain(&format!("{error:#}"))?,
            },
            _ => self.complain(&format!(
                "no command `/{command}`; there are /reset, /system TEXT, /save FILE and /quit"
            ))?,
        }
        Ok(Some(ControlFlow::Continue(())))
    }

    /// Says what went wrong; where nobody is there to read it, it ends the program.
    fn complain(&self, what: &str) -> Result<()> {
        if !self.terminal {
            bail!("{what}");
        }
        say(&format!("error: {what}"));
        Ok(())
    }

    /// Everything that the model reads: the instruction, then the conversation.
    fn messages(&self) -> Vec<Message> {
        let system = self.system.iter().map(|text| Message::new("system", text));
        system.chain(self.history.iter().cloned()).collect()
    }

    fn save(&self, file: &Path) -> Result<()> {
        if file.exists() {
            bail!("`{}` is there already", file.display());
        }
        if self.history.is_empty() {
            bail!("nothing was said that could be saved");
        }
        let line = serde_json::json!({ "messages": self.messages() });
        write_atomic(file, format!("{line}\n").as_bytes())
    }

    /// Answers, as the reply is made. What the model cannot read is said and forgotten.
    fn answer(&mut self, text: &str) -> Result<()> {
        self.history.push(Message::new("user", text));
        let ids = match self.fitting() {
            Ok(Some(ids)) => ids,
            Ok(None) => {
                self.history.pop();
                let most = self.room();
                return self.complain(&format!(
                    "this is longer than the {most} tokens that the model can read beside its reply"
                ));
            }
            Err(error) => {
                self.history.pop();
                return self.complain(&format!("{error:#}"));
            }
        };
        let mut mouth = Mouth {
            tokenizer: &self.voice.tokenizer,
            ids: Vec::new(),
            said: 0,
            stop: &self.stop.asked,
        };
        self.stop.asked.store(false, Ordering::Relaxed);
        self.stop.speaking.store(true, Ordering::Relaxed);
        let made = self
            .voice
            .speak(&ids, 1, &self.sampling, (self.seed, self.turn), &mut mouth);
        self.stop.speaking.store(false, Ordering::Relaxed);
        self.turn += 1;
        let reply = made?.pop().context("the model said nothing")?;
        // What of the text was held back while it ended within a character.
        speak(reply.text.get(mouth.said..).unwrap_or_default())?;
        speak(if reply.finished { "\n" } else { " …\n" })?;
        self.history.push(Message::new("assistant", reply.text.trim()));
        Ok(())
    }

    /// Tokens that a conversation may have.
    fn room(&self) -> usize {
        self.voice.positions().saturating_sub(self.sampling.max_new_tokens)
    }

    /// The conversation as ids, without its oldest exchanges when it has become too long for the model; none when
    /// the last words alone are.
    fn fitting(&mut self) -> Result<Option<Vec<u32>>> {
        let mut forgotten = 0;
        let ids = loop {
            let ids = self.voice.conversation(&self.messages())?;
            if ids.len() <= self.room() {
                break Some(ids);
            }
            if self.history.len() < 3 {
                break None;
            }
            self.history.drain(..2);
            forgotten += 1;
        };
        if forgotten > 0 {
            let what = if forgotten == 1 { "exchange is" } else { "exchanges are" };
            say(&format!(
                "(the model's {} positions are full: the oldest {forgotten} {what} forgotten)",
                self.voice.positions()
            ));
        }
        Ok(ids)
    }
}

/// Says a reply while it is made.
struct Mouth<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    /// Bytes of the text that were said.
    said: usize,
    stop: &'a AtomicBool,
}

impl Listener for Mouth<'_> {
    fn token(&mut self, _: usize, token: u32) -> ControlFlow<()> {
        self.ids.push(token);
        // A character of several tokens shows as a replacement until it is whole.
        if let Ok(text) = self.tokenizer.decode(&self.ids)
            && !text.ends_with(char::REPLACEMENT_CHARACTER)
            && let Some(new) = text.get(self.said..)
        {
            if speak(new).is_err() {
                return ControlFlow::Break(());
            }
            self.said = text.len();
        }
        if self.stop.load(Ordering::Relaxed) {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
}
