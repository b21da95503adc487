//! A worker as the driver sees it: a process that answers lines.

use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow, bail};

use crate::process::Owned;
use crate::protocol::{Answer, Ask, Hello, Loaded, Ran, Task, Work};

/// How long is waited for an answer, or for the end of a whole program. Loading, a turn of the largest case and the small
/// experiment take about a minute each on two cores; ten times as much is for slow and busy machines. What takes longer hangs,
/// and shall not hold up the cases behind it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(600);

/// How to start the workers.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    /// This program.
    pub(crate) ours: PathBuf,
    /// The Python of the private environment.
    pub(crate) python: PathBuf,
    /// The folder of their workers.
    pub(crate) peers: PathBuf,
    /// Threads of either.
    pub(crate) threads: usize,
    /// How long they are waited for: [`PATIENCE`].
    pub(crate) patience: Duration,
}

impl Programs {
    /// The command that starts a side for a task.
    pub(crate) fn command(&self, ours: bool, task: Task) -> Result<Command> {
        let mut command = if ours {
            let mut command = Command::new(&self.ours);
            // As `unsay run` and `unsay chat` have it.
            command.arg("worker").envs(unsay_model::memory::settings());
            command
        } else {
            let name = serde_json::to_value(task)?;
            let mut command = Command::new(&self.python);
            command.arg(self.peers.join("worker.py"));
            command.arg(name.as_str().context("a task is a word")?);
            command
        };
        self.environment(&mut command);
        Ok(command)
    }

    /// The same surroundings for everyone: threads, and nothing from the network.
    pub(crate) fn environment(&self, command: &mut Command) {
        command
            .env("OMP_NUM_THREADS", self.threads.to_string())
            .env("MKL_NUM_THREADS", self.threads.to_string())
            .env("TOKENIZERS_PARALLELISM", "false")
            .env("HF_HUB_OFFLINE", "1")
            .env("HF_DATASETS_OFFLINE", "1")
            .env("TRANSFORMERS_VERBOSITY", "error")
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env_remove("PYTHONPATH")
            .env_remove("OMP_WAIT_POLICY")
            .env_remove("GOMP_SPINCOUNT");
    }
}

/// A running worker.
#[derive(Debug)]
pub(crate) struct Worker {
    name: String,
    child: Owned,
    input: ChildStdin,
    /// Its lines, read by a thread of their own so that waiting for one can end.
    lines: Receiver<io::Result<String>>,
    patience: Duration,
    /// Where its standard error goes.
    log: PathBuf,
    /// What it said when it started.
    pub(crate) hello: Hello,
}

impl Worker {
    /// Starts a worker and waits until it has loaded its libraries. What it writes to standard error goes to a file. When it
    /// gives no answer for as long as `patience`, it is ended.
    pub(crate) fn start(name: &str, mut command: Command, log: &Path, patience: Duration) -> Result<Self> {
        let file = std::fs::File::create(log).with_context(|| format!("cannot write `{}`", log.display()))?;
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(file);
        let what = command.get_program().to_string_lossy().into_owned();
        let child = command
            .spawn()
            .with_context(|| format!("cannot start `{what}` (`just bench-peers` makes the Python environment)"))?;
        let mut child = Owned(child);
        let input = child.0.stdin.take().context("a worker without input")?;
        let output = BufReader::new(child.0.stdout.take().context("a worker without output")?);
        // One line ahead, so that a worker that never stops fills no memory. Ends with its output, or when nobody listens.
        let (hear, lines) = sync_channel(1);
        thread::spawn(move || output.lines().try_for_each(|line| hear.send(line)));
        let mut worker = Self {
            name: name.to_owned(),
            child,
            input,
            lines,
            patience,
            log: log.to_owned(),
            hello: Hello {
                threads: 0,
                versions: Default::default(),
                libtorch: String::new(),
                rss_mib: 0.0,
            },
        };
        match worker.answer()? {
            Answer::Hello(hello) => worker.hello = hello,
            other => bail!("worker {name}: expected a greeting, got {other:?}"),
        }
        Ok(worker)
    }

    /// Has it load model and data.
    pub(crate) fn load(&mut self, work: Work) -> Result<Loaded> {
        match self.ask(&Ask::Load(Box::new(work)))? {
            Answer::Loaded(loaded) => Ok(loaded),
            other => bail!("worker {}: expected what was loaded, got {other:?}", self.name),
        }
    }

    /// Has it make `n` steps.
    pub(crate) fn run(&mut self, n: usize) -> Result<Ran> {
        match self.ask(&Ask::Run { n })? {
            Answer::Ran(ran) if ran.secs.len() == n && ran.tokens.len() == n => Ok(ran),
            Answer::Ran(ran) => bail!("worker {}: expected {n} steps, got {}", self.name, ran.secs.len()),
            other => bail!("worker {}: expected steps, got {other:?}", self.name),
        }
    }

    /// Tells it to end and waits.
    pub(crate) fn quit(mut self) -> Result<()> {
        self.say(&Ask::Quit)?;
        let Some(status) = ended_within(&mut self.child.0, self.patience)? else {
            return Err(self.hangs("no end"));
        };
        if !status.success() {
            bail!("worker {} ended with {status}", self.name);
        }
        Ok(())
    }

    fn ask(&mut self, ask: &Ask) -> Result<Answer> {
        self.say(ask)?;
        self.answer()
    }

    fn say(&mut self, ask: &Ask) -> Result<()> {
        let line = serde_json::to_string(ask)?;
        writeln!(self.input, "{line}")
            .and_then(|()| self.input.flush())
            .map_err(|_| self.ended("ended without a question"))
    }

    fn answer(&mut self) -> Result<Answer> {
        let line = match self.lines.recv_timeout(self.patience) {
            Ok(line) => line.with_context(|| format!("worker {}: cannot be read", self.name))?,
            Err(RecvTimeoutError::Disconnected) => return Err(self.ended("ended without an answer")),
            Err(RecvTimeoutError::Timeout) => return Err(self.hangs("no answer")),
        };
        let answer =
            serde_json::from_str(&line).with_context(|| format!("worker {} answered `{}`", self.name, line.trim()))?;
        match answer {
            Answer::Failed { why } => Err(self.ended(&why)),
            answer => Ok(answer),
        }
    }

    /// Ends a worker that was waited for in vain.
    fn hangs(&mut self, what: &str) -> Error {
        self.child.end();
        self.error(&format!("{what} within {} s, ended", self.patience.as_secs()))
    }

    /// An error with how the worker ended, where it has or is about to, and what it wrote last.
    fn ended(&mut self, why: &str) -> Error {
        let status = ended_within(&mut self.child.0, Duration::from_secs(1)).ok().flatten();
        match status.filter(|status| !status.success()) {
            Some(status) => self.error(&format!("{why} ({status})")),
            None => self.error(why),
        }
    }

    /// An error with what the worker wrote last.
    fn error(&self, why: &str) -> Error {
        let mut text = format!("worker {}: {why}", self.name);
        let last = tail(&self.log);
        if !last.is_empty() {
            text.push_str(&format!("\nwhat it wrote last:\n{last}"));
        }
        anyhow!(text)
    }
}

/// How a process ended, where it does so within a time.
fn ended_within(child: &mut Child, most: Duration) -> Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        let status = child.try_wait()?;
        if status.is_some() || start.elapsed() > most {
            return Ok(status);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// The end of what a worker wrote to standard error.
pub(crate) fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: &str = r#"{"is":"hello","threads":2,"versions":{},"libtorch":"x","rss_mib":1}"#;

    /// A worker that says given lines, one for each line it reads and one before.
    fn fake(answers: &[&str]) -> (tempfile::TempDir, Result<Worker>) {
        let folder = tempfile::tempdir().unwrap();
        let script = answers
            .iter()
            .map(|line| format!("echo '{line}'"))
            .collect::<Vec<_>>()
            .join("; read x; ");
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{script}; read x")]);
        let worker = Worker::start("fake", command, &folder.path().join("log"), PATIENCE);
        (folder, worker)
    }

    #[test]
    fn a_worker_greets_runs_and_quits() {
        let ran = r#"{"is":"ran","secs":[0.5,0.6],"cpu_secs":1,"tokens":[9,9],"values":{},"rss_mib":1,"peak_mib":2}"#;
        let (_folder, worker) = fake(&[HELLO, ran]);
        let mut worker = worker.unwrap();
        assert_eq!(worker.hello.threads, 2);
        assert_eq!(worker.run(2).unwrap().tokens, [9, 9]);
        worker.quit().unwrap();
    }

    #[test]
    fn what_goes_wrong_is_named() {
        let (_folder, worker) = fake(&["{\"is\":\"failed\",\"why\":\"no model\"}"]);
        assert!(format!("{:#}", worker.unwrap_err()).contains("worker fake: no model"));
        let (_folder, worker) = fake(&["hello"]);
        assert!(format!("{:#}", worker.unwrap_err()).contains("worker fake answered `hello`"));
        let short = r#"{"is":"ran","secs":[0.5],"cpu_secs":1,"tokens":[9],"values":{},"rss_mib":1,"peak_mib":2}"#;
        let (_folder, worker) = fake(&[HELLO, short]);
        let error = worker.unwrap().run(2).unwrap_err().to_string();
        assert_eq!(error, "worker fake: expected 2 steps, got 1");
        let (_folder, worker) = fake(&[HELLO]);
        let mut worker = worker.unwrap();
        assert!(format!("{:#}", worker.run(1).unwrap_err()).contains("without an answer"));
    }

    #[test]
    fn what_a_worker_said_before_it_died_is_shown() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo 'no module named trl' >&2"]);
        let error = Worker::start("theirs", command, &folder.path().join("log"), PATIENCE).unwrap_err();
        assert!(format!("{error:#}").contains("no module named trl"), "{error:#}");
    }

    /// What the system ended for want of memory was only "ended without an answer" in the middle of a case.
    #[test]
    fn a_worker_that_was_killed_is_said_to_be() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args([
            "-c",
            &format!("echo '{HELLO}'; read x; echo 'much memory' >&2; kill -9 $$"),
        ]);
        let mut worker = Worker::start("theirs", command, &folder.path().join("log"), PATIENCE).unwrap();
        let error = format!("{:#}", worker.run(1).unwrap_err());
        assert!(
            error.contains("ended without an answer (signal: 9 (SIGKILL))\nwhat it wrote last:\nmuch memory"),
            "{error}"
        );
        let error = format!("{:#}", worker.run(1).unwrap_err());
        assert!(error.contains("SIGKILL"), "{error}");
    }

    /// A worker that did nothing any more held up a run for ever.
    #[test]
    fn a_worker_that_hangs_is_ended_and_said_to_hang() {
        let soon = Duration::from_millis(200);
        for (script, greets) in [
            ("exec sleep 1000".to_owned(), false),
            (format!("echo stuck >&2; echo '{HELLO}'; exec sleep 1000"), true),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let mut command = Command::new("sh");
            command.args(["-c", &script]);
            let patience = if greets { PATIENCE } else { soon };
            let worker = Worker::start("theirs", command, &folder.path().join("log"), patience);
            let error = if greets {
                let mut worker = worker.unwrap();
                worker.patience = soon;
                let error = worker.run(1).unwrap_err();
                let process = format!("/proc/{}", worker.child.0.id());
                assert!(!Path::new(&process).exists(), "it was ended and waited for");
                error
            } else {
                worker.unwrap_err()
            };
            let error = error.to_string();
            assert!(
                error.starts_with("worker theirs: no answer within 0 s, ended"),
                "{error}"
            );
            assert_eq!(error.ends_with("\nwhat it wrote last:\nstuck"), greets, "{error}");
        }
    }

    #[test]
    fn a_worker_that_does_not_quit_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", &format!("echo '{HELLO}'; exec sleep 1000")]);
        let mut worker = Worker::start("theirs", command, &folder.path().join("log"), PATIENCE).unwrap();
        worker.patience = Duration::from_millis(200);
        let process = format!("/proc/{}", worker.child.0.id());
        let error = worker.quit().unwrap_err().to_string();
        assert!(error.starts_with("worker theirs: no end within 0 s, ended"), "{error}");
        assert!(!Path::new(&process).exists());
    }
}
