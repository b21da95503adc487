//! Time and memory of a training step by precision, with replayed activations, and above frozen blocks.
//!
//! `cargo bench -p unsay-train --bench precision` prints a table; arguments after `--` choose shapes, ways, threads and
//! steps: `-- shape=small,smollm2 way=fp32,bf16 threads=1,2 steps=7`. Shapes: `small` is 6.8 million parameters (width 256,
//! 6 blocks, vocabulary 8192) on 16 examples of 64 tokens, `long` the same on 8 of 256, `deep` on 16 of 64 with 12 blocks,
//! `smollm2` the shape of SmolLM2-135M on 8 examples of 64. The first half of each example is its prompt. Ways: `fp32`,
//! `bf16`; with `-cringe` half of the examples are contrasted, otherwise the likelihood of all is trained; with `-replay`
//! activations are computed again; with `-top` the last 3 blocks and the final norm are trained; with `-cached` on top of
//! that the states below come from a file.
//! Every case runs in a process of its own, because the peak of a process (`VmHWM`) never falls; their steps alternate.
//! Beside the time of the clock stands that of the processor, which other processes disturb less; ratios are of the latter.

#![allow(clippy::unwrap_used, reason = "a benchmark: a panic is the report")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use tch::Device;
use unsay_data::{Encoded, Label, Span, stream};
use unsay_losses::token::{Cringe, Loss};
use unsay_model::memory::settings;
use unsay_model::{Config, Decoder, Precision, Size, Trained};
use unsay_train::{Examples, Fit, LanguageObjective, PrefixStates, Settings, Source};

/// Under this name a process of the benchmark is told which case it is.
const CASE: &str = "UNSAY_PRECISION_CASE";

/// Name, width, feed-forward width, blocks, heads, key/value heads, vocabulary, examples, tokens of each.
const SHAPES: [(&str, [usize; 8]); 5] = [
    ("tiny", [32, 64, 4, 4, 2, 96, 4, 12]),
    ("small", [256, 704, 6, 8, 8, 8192, 16, 64]),
    ("long", [256, 704, 6, 8, 8, 8192, 8, 256]),
    ("deep", [256, 704, 12, 8, 8, 8192, 16, 64]),
    ("smollm2", [576, 1536, 30, 9, 3, 49152, 8, 64]),
];

const MIB: f64 = 1024.0;

/// A line of `/proc/self/status` in MiB; `None` on systems without.
fn status_mib(name: &str) -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib = line.trim_start_matches(':').trim().trim_end_matches(" kB");
    Some(kib.parse::<f64>().ok()? / MIB)
}

/// Seconds that this process has kept processors busy; 0 on systems that do not say.
fn cpu_secs() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // User and system time in hundredths of a second, twelve and thirteen words after the name.
    let words = text.rsplit(')').next().unwrap_or_default().split_whitespace();
    words
        .skip(11)
        .take(2)
        .filter_map(|word| word.parse::<f64>().ok())
        .sum::<f64>()
        / 100.0
}

fn source(n: usize, (length, vocab): (usize, usize), contrasted: bool) -> Source {
    let one = |example: usize| Encoded {
        ids: (0..length)
            .map(|at| (4 + (example * 31 + at * at * 17 + at) % (vocab - 4)) as u32)
            .collect(),
        spans: vec![Span {
            start: length / 2,
            end: length,
            ended: false,
        }],
        label: match (contrasted, example.is_multiple_of(2)) {
            (false, _) => Label::Unlabelled,
            (true, true) => Label::Positive,
            (true, false) => Label::Negative,
        },
        example,
    };
    Source {
        encoded: (0..n).map(one).collect(),
        ids: Vec::new(),
        weight: 1.0,
    }
}

/// A run that never ends by itself.
fn fit(shape: &str, way: &str, folder: &std::path::Path) -> Fit<LanguageObjective> {
    let (_, [hidden_size, ff, layers, heads, kv, vocab, batch, length]) =
        *SHAPES.iter().find(|(name, _)| *name == shape).unwrap();
    let size = Size {
        hidden_size,
        intermediate_size: ff,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: kv,
    };
    let config = Config::new(&size, vocab, length);
    let has = |part: &str| way.split('-').any(|word| word == part);
    let precision = match has("bf16") {
        true => Precision::Bf16 { even_if_slower: true },
        false => Precision::default(),
    };
    let trained = match has("top") || has("cached") {
        true => Trained::Top { layers: 3 },
        false => Trained::All {},
    };
    let decoder = Decoder::init(&config, &mut stream(0, "init", 0), Device::Cpu).unwrap();
    let decoder = decoder.with_trained(&trained, &mut stream(0, "lora", 0)).unwrap();
    let (train, valid) = (
        source(4 * batch, (length, vocab), has("cringe")),
        source(2, (length, vocab), has("cringe")),
    );
    let examples = Examples::new(vec![train.clone()], valid.clone()).unwrap();
    let (decoder, states) = match has("cached") {
        true => {
            let decoder = decoder.with_precision(precision).unwrap();
            let below = decoder.params().n_frozen();
            let states = [("train", &train), ("valid", &valid)].map(|(name, set)| {
                let path = folder.join(name);
                let model = (decoder.trunk(), decoder.params());
                PrefixStates::write(&path, model, below, &set.encoded, &mut |_| (), &|| false).unwrap();
                PrefixStates::open(&path, &set.encoded).unwrap()
            });
            (decoder, Some(states))
        }
        false => (decoder, None),
    };
    let loss = match has("cringe") {
        true => Loss::Cringe(Cringe::new(1.0, 5)),
        false => Loss::Nll(Default::default()),
    };
    let objective = LanguageObjective::new(decoder, loss, examples).unwrap();
    let objective = match states {
        Some(states) => objective.with_prefix_states(states.into()).unwrap(),
        None => objective,
    };
    let settings = Settings {
        precision,
        checkpoint_activations: has("replay"),
        ..Settings::new(1 << 40, batch, 1e-4)
    };
    Fit::open(objective, &settings, 0, &folder.join("run")).unwrap()
}

/// Makes a step for each line, and answers with seconds of clock and processor, the peak so far beyond the empty process, and the loss.
fn child(case: &str) {
    let words: Vec<&str> = case.split(' ').collect();
    tch::set_num_threads(words[2].parse().unwrap());
    let before = status_mib("VmRSS");
    let folder = tempfile::tempdir().unwrap();
    let mut fit = fit(words[0], words[1], folder.path());
    let mut out = std::io::stdout();
    for _ in std::io::stdin().lines() {
        let (start, busy) = (Instant::now(), cpu_secs());
        let record = fit.next().unwrap().unwrap();
        let (secs, busy) = (start.elapsed().as_secs_f64(), cpu_secs() - busy);
        let peak = status_mib("VmHWM").zip(before).map(|(peak, before)| peak - before);
        let loss = record.metric("loss").unwrap();
        writeln!(out, "{secs} {busy} {} {loss}", peak.unwrap_or(f64::NAN)).unwrap();
        out.flush().unwrap();
    }
}

struct Process {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
    steps: Vec<[f64; 4]>,
}

impl Process {
    fn start(shape: &str, way: &str, threads: &str) -> Process {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let command = command
            .env(CASE, format!("{shape} {way} {threads}"))
            .env("OMP_NUM_THREADS", threads)
            .envs(settings());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        Process {
            ask: child.stdin.take().unwrap(),
            answers: BufReader::new(child.stdout.take().unwrap()),
            child,
            steps: Vec::new(),
        }
    }

    fn step(&mut self) {
        writeln!(self.ask, "step").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let numbers: Vec<f64> = line.split_whitespace().map(|word| word.parse().unwrap()).collect();
        self.steps.push(numbers.try_into().unwrap());
    }

    /// Seconds of clock and of processor, each in ascending order without the first step, peak and last loss.
    fn end(mut self) -> ([Vec<f64>; 2], f64, f64) {
        drop(self.ask);
        assert!(self.child.wait().unwrap().success());
        let [_, _, peak, loss] = *self.steps.last().unwrap();
        let sorted = |at: usize| {
            let mut secs: Vec<f64> = self.steps[1..].iter().map(|step| step[at]).collect();
            secs.sort_by(f64::total_cmp);
            secs
        };
        ([sorted(0), sorted(1)], peak, loss)
    }
}

/// The value of an argument `name=a,b,c`.
fn list(name: &str, default: &str) -> Vec<String> {
    let given = std::env::args().find_map(|a| a.strip_prefix(&format!("{name}=")).map(str::to_owned));
    let given = given.unwrap_or_else(|| default.to_owned());
    given.split(',').map(str::to_owned).collect()
}

fn main() {
    if let Ok(case) = std::env::var(CASE) {
        return child(&case);
    }
    // `cargo test --benches` only wants to see that it works.
    let quick = std::env::args().any(|a| a == "--test") || !std::env::args().any(|a| a == "--bench");
    let (shapes, ways, steps) = match quick {
        true => ("tiny", "fp32,bf16-replay,bf16-cached-replay", "1"),
        false => ("small,smollm2", "fp32,bf16,fp32-replay,bf16-replay", "7"),
    };
    let steps: usize = list("steps", steps)[0].parse().unwrap();
    let mut out = std::io::stdout();
    let titles = [
        "shape",
        "way",
        "secs",
        "min",
        "max",
        "cpu secs",
        "cpu ratio",
        "tok/cpu s",
        "peak MiB",
        "loss",
    ];
    let mut line = |cells: [String; 10]| {
        let cells: Vec<String> = cells.iter().map(|cell| format!("{cell:>12}")).collect();
        writeln!(out, "{}", cells.join(" ")).unwrap();
    };
    line(titles.map(str::to_owned));
    for threads in list("threads", "1") {
        for shape in list("shape", shapes) {
            let ways = list("way", ways);
            let mut processes: Vec<Process> = ways.iter().map(|way| Process::start(&shape, way, &threads)).collect();
            for _ in 0..=steps {
                processes.iter_mut().for_each(Process::step);
            }
            let ends: Vec<_> = processes.into_iter().map(Process::end).collect();
            let (_, [.., batch, length]) = *SHAPES.iter().find(|(name, _)| *name == shape).unwrap();
            let median = |secs: &[f64]| secs[secs.len() / 2];
            for (way, ([secs, busy], peak, loss)) in ways.iter().zip(&ends) {
                let own = median(busy);
                line([
                    shape.clone(),
                    format!("{way}/{threads}"),
                    format!("{:.3}", median(secs)),
                    format!("{:.3}", secs[0]),
                    format!("{:.3}", secs[secs.len() - 1]),
                    format!("{own:.2}"),
                    format!("{:.2}", median(&ends[0].0[1]) / own),
                    format!("{:.0}", (batch * length) as f64 / own),
                    format!("{peak:.0}"),
                    format!("{loss:.4}"),
                ]);
            }
        }
    }
}
