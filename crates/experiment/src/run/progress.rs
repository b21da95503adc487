//! What the user sees while work goes on: one bar per running step with rate and time left, and one line per
//! finished step; plain lines where the output is no terminal.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Seconds between two lines about the same step where there is no terminal.
const PLAIN_EVERY: Duration = Duration::from_secs(30);

/// The display of a whole run.
pub struct Progress {
    bars: Option<MultiProgress>,
    total: usize,
    done: Mutex<usize>,
}

impl Progress {
    /// For `total` steps of which `done` are finished already.
    pub fn new(total: usize, done: usize) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bars = terminal.then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
        Self {
            bars,
            total,
            done: Mutex::new(done),
        }
    }

    /// A step begins.
    pub fn meter(&self, title: &str) -> Meter<'_> {
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::new(0));
            let style =
                ProgressStyle::with_template("  {msg:44!} {bar:24} {pos:>6}/{len:<6} {per_sec:>10} {eta:>4} left");
            if let Ok(style) = style {
                bar.set_style(style.progress_chars("━╸ "));
            }
            bar.set_message(title.to_owned());
            bar.enable_steady_tick(Duration::from_millis(500));
            bar
        });
        let plain = Mutex::new(Plain {
            begun: Instant::now(),
            said: Instant::now(),
            total: 0,
        });
        Meter {
            progress: self,
            title: title.to_owned(),
            bar,
            plain,
        }
    }

    /// Says one line without disturbing the bars.
    pub fn say(&self, line: &str) {
        match &self.bars {
            Some(bars) => drop(bars.println(line)),
            None => drop(writeln!(std::io::stderr().lock(), "{line}")),
        }
    }
}

struct Plain {
    begun: Instant,
    said: Instant,
    total: u64,
}

/// The display of one step.
pub struct Meter<'a> {
    progress: &'a Progress,
    title: String,
    bar: Option<ProgressBar>,
    plain: Mutex<Plain>,
}

impl Meter<'_> {
    /// Begins a piece of work of `total` parts, of which `done` are done already.
    pub fn start(&self, what: &str, total: u64, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_message(if what.is_empty() {
                self.title.clone()
            } else {
                format!("{}: {what}", self.title)
            });
            bar.set_length(total);
            bar.set_position(done);
            bar.reset_eta();
        }
        if let Ok(mut plain) = self.plain.lock() {
            *plain = Plain {
                begun: Instant::now(),
                said: Instant::now(),
                total,
            };
        }
    }

    /// `done` parts are done.
    pub fn set(&self, done: u64) {
        match &self.bar {
            Some(bar) => bar.set_position(done),
            None => {
                let Ok(mut plain) = self.plain.lock() else { return };
                if plain.said.elapsed() < PLAIN_EVERY || done == 0 {
                    return;
                }
                plain.said = Instant::now();
                let left = plain.begun.elapsed().as_secs_f64() / done as f64 * plain.total.saturating_sub(done) as f64;
                self.progress
                    .say(&format!("  {}: {done}/{}, {left:.0} s left", self.title, plain.total));
            }
        }
    }

    /// Says one line about this step.
    pub fn say(&self, line: &str) {
        self.progress.say(line);
    }

    /// The step is finished.
    pub fn finish(self, wall_secs: f64) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let done = self.progress.done.lock().map_or(0, |mut d| {
            *d += 1;
            *d
        });
        let total = self.progress.total;
        self.progress
            .say(&format!("[{done:>3}/{total}] {:<52} {wall_secs:>7.1} s", self.title));
    }
}
