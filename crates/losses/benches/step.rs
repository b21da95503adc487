//! Memory and time of a training step through the op, and through plain full logits and autograd.
//!
//! `cargo bench -p unsay-losses --bench step` prints a table; arguments after `--` choose rows, vocabularies, threads and
//! steps: `-- rows=4096 vocab=8192,32768 threads=1,2 steps=7`. A step is a small trunk, `hidden = tanh(x W)` of width 256,
//! an output embedding, a loss with half of the rows negative, `backward()` and an update. Every case runs in
//! processes of its own, because the peak of a process (`VmHWM`) never falls; the times of the two ways alternate.

#![allow(clippy::unwrap_used, reason = "a benchmark: a panic is the report")]

#[path = "../tests/plain/mod.rs"]
mod plain;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use tch::{Device, Kind, Tensor};
use unsay_losses::token::{Cringe, Loss, Nll};
use unsay_losses::{TokenCounts, TokenOp, TokenRows};

/// Under this name a process of the benchmark is told which case it is.
const CASE: &str = "UNSAY_STEP_CASE";

#[derive(Debug, Clone)]
struct Case {
    loss: &'static str,
    way: &'static str,
    rows: i64,
    width: i64,
    vocab: i64,
    threads: i32,
    /// 0: the op's own choice.
    chunk_logits: i64,
}

const LOSSES: [&str; 2] = ["nll", "cringe"];
/// The plain way, the op in one pass, and the op in two.
const WAYS: [&str; 3] = ["plain", "fused", "two"];

impl Case {
    fn text(&self) -> String {
        let Case {
            loss,
            way,
            rows,
            width,
            vocab,
            threads,
            chunk_logits,
        } = self;
        format!("{loss} {way} {rows} {width} {vocab} {threads} {chunk_logits}")
    }

    fn parse(text: &str) -> Case {
        let words: Vec<&str> = text.split(' ').collect();
        let number = |at: usize| words[at].parse::<i64>().unwrap();
        let one_of = |all: &[&'static str], at: usize| *all.iter().find(|known| **known == words[at]).unwrap();
        Case {
            loss: one_of(&LOSSES, 0),
            way: one_of(&WAYS, 1),
            rows: number(2),
            width: number(3),
            vocab: number(4),
            threads: number(5) as i32,
            chunk_logits: number(6),
        }
    }

    fn loss(&self) -> Loss {
        match self.loss {
            "nll" => Loss::Nll(Nll {}),
            _ => Loss::Cringe(Cringe::new(1.0, 5)),
        }
    }

    /// Weights and their gradients.
    fn fixed_mib(&self) -> f64 {
        let numbers = self.width * (self.width + self.vocab);
        2.0 * 4.0 * numbers as f64 / MIB
    }
}

const MIB: f64 = 1024.0 * 1024.0;

/// A line of `/proc/self/status` in MiB; `None` on systems without.
fn status_mib(name: &str) -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: f64 = line
        .trim_start_matches(':')
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .ok()?;
    Some(kib / 1024.0)
}

struct Model {
    case: Case,
    loss: Loss,
    weights: [Tensor; 2],
    input: Tensor,
    targets: Tensor,
    rows: TokenRows,
    counts: TokenCounts,
    draws: Tensor,
}

impl Model {
    fn new(case: &Case) -> Model {
        let Case {
            rows: n, width, vocab, ..
        } = *case;
        let random = |size: &[i64], scale: f64| {
            let made = Tensor::empty(size, (Kind::Float, Device::Cpu)).normal_(0.0, scale);
            made.set_requires_grad(true)
        };
        let examples = 16.min(n);
        let example: Vec<i64> = (0..n).map(|row| row * examples / n).collect();
        let labels: Vec<i8> = (0..examples).map(|example| (example % 2) as i8).collect();
        let is_eos = vec![false; n as usize];
        let rows = TokenRows::new(&example, &is_eos, &labels, Device::Cpu).unwrap();
        Model {
            loss: case.loss(),
            weights: [random(&[width, width], 0.06), random(&[vocab, width], 0.06)],
            input: random(&[n, width], 1.0).detach(),
            targets: Tensor::randint(vocab, [n], (Kind::Int64, Device::Cpu)),
            counts: TokenCounts::of(&rows).unwrap(),
            rows,
            draws: Tensor::rand([n, 1], (Kind::Float, Device::Cpu)),
            case: case.clone(),
        }
    }

    fn step(&mut self) {
        let [trunk, embedding] = &mut self.weights;
        let hidden = self.input.matmul(trunk).tanh();
        let (needs, draws) = (self.loss.needs(), Some(&self.draws));
        if self.case.way == "plain" {
            let stats = plain::stats(&hidden.matmul(&embedding.tr()), &self.targets, &needs);
            let value = self.loss.evaluate(&stats, &self.rows, &self.counts, draws).unwrap();
            drop(stats);
            value.total.backward();
        } else {
            let mut op = TokenOp::new(&hidden, embedding, &self.targets, &needs)
                .unwrap()
                .with_gradient_in_place();
            if self.case.chunk_logits > 0 {
                op = op.with_chunk_rows((self.case.chunk_logits / self.case.vocab) as usize);
            }
            if self.case.way == "fused" {
                let fused = op.fused_loss(&*self.loss, &self.rows, &self.counts, draws).unwrap();
                fused.backward().unwrap();
            } else {
                let stats = op.forward().unwrap();
                let value = self.loss.evaluate(&stats, &self.rows, &self.counts, draws).unwrap();
                value.total.backward();
                op.backward(&stats).unwrap();
            }
        }
        drop(hidden);
        tch::no_grad(|| {
            for weight in [trunk, embedding] {
                let mut gradient = weight.grad();
                let _ = weight.g_add_(&gradient.g_mul_scalar_(-0.01));
                let _ = gradient.zero_();
            }
        });
    }
}

/// Runs the steps asked for, a line each, and answers with seconds and the peak so far beyond the empty process.
fn child(case: &str) {
    let case = Case::parse(case);
    tch::set_num_threads(case.threads);
    // What libtorch needs once is not the model's.
    let warm = Tensor::ones([64, 64], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    warm.matmul(&warm).log_softmax(-1, None).sum(Kind::Float).backward();
    let before = status_mib("VmRSS");
    let mut model = Model::new(&case);
    let mut out = std::io::stdout();
    for _ in std::io::stdin().lines() {
        let start = Instant::now();
        model.step();
        let secs = start.elapsed().as_secs_f64();
        let peak = status_mib("VmHWM").zip(before).map(|(peak, before)| peak - before);
        writeln!(out, "{secs} {}", peak.unwrap_or(f64::NAN)).unwrap();
        out.flush().unwrap();
    }
}

struct Process {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
    secs: Vec<f64>,
    peak: f64,
}

impl Process {
    fn start(case: &Case) -> Process {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let command = command
            .env(CASE, case.text())
            .env("OMP_NUM_THREADS", case.threads.to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        Process {
            ask: child.stdin.take().unwrap(),
            answers: BufReader::new(child.stdout.take().unwrap()),
            child,
            secs: Vec::new(),
            peak: f64::NAN,
        }
    }

    fn step(&mut self) {
        writeln!(self.ask, "step").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let numbers: Vec<f64> = line.split_whitespace().map(|word| word.parse().unwrap()).collect();
        self.secs.push(numbers[0]);
        self.peak = numbers[1];
    }

    /// Median seconds and peak, once it has ended.
    fn end(self, warm_up: usize) -> (f64, f64) {
        let Process {
            mut child,
            ask,
            mut secs,
            peak,
            ..
        } = self;
        drop(ask);
        assert!(child.wait().unwrap().success());
        secs.drain(..warm_up);
        secs.sort_by(f64::total_cmp);
        (secs[secs.len() / 2], peak)
    }
}

/// The value of an argument `name=a,b,c`.
fn list(name: &str, default: &str) -> Vec<String> {
    let given = std::env::args().find_map(|a| a.strip_prefix(&format!("{name}=")).map(str::to_owned));
    given
        .unwrap_or_else(|| default.to_owned())
        .split(',')
        .map(str::to_owned)
        .collect()
}

fn numbers(name: &str, default: &str) -> Vec<i64> {
    list(name, default).iter().map(|word| word.parse().unwrap()).collect()
}

fn main() {
    if let Ok(case) = std::env::var(CASE) {
        return child(&case);
    }
    // `cargo test --benches` only wants to see that it works.
    let quick = std::env::args().any(|a| a == "--test") || !std::env::args().any(|a| a == "--bench");
    let (rows, width, vocabs, steps) = match quick {
        true => ("32", 16, "64", "1"),
        false => ("4096", 256, "8192,32768,131072", "7"),
    };
    let (rows, steps) = (numbers("rows", rows)[0], numbers("steps", steps)[0]);
    let mut out = std::io::stdout();
    let titles = [
        "loss",
        "threads",
        "vocab",
        "way",
        "chunk",
        "peak MiB",
        "beyond MiB",
        "ratio",
        "secs",
        "ratio",
    ];
    let mut line = |cells: [String; 10]| {
        let cells: Vec<String> = cells.iter().map(|cell| format!("{cell:>10}")).collect();
        writeln!(out, "{}", cells.join(" ")).unwrap();
    };
    line(titles.map(str::to_owned));
    for threads in numbers("threads", "1,2") {
        for vocab in numbers("vocab", vocabs) {
            for loss in list("loss", "nll,cringe") {
                let mut cases = Vec::new();
                for way in list("way", "plain,fused,two") {
                    for chunk in numbers("chunk", "0") {
                        let case = format!("{loss} {way} {rows} {width} {vocab} {threads} {chunk}");
                        cases.push(Case::parse(&case));
                    }
                }
                let mut processes: Vec<Process> = cases.iter().map(Process::start).collect();
                for _ in 0..steps + 1 {
                    processes.iter_mut().for_each(Process::step);
                }
                let ends: Vec<(f64, f64)> = processes.into_iter().map(|process| process.end(1)).collect();
                for (case, (secs, peak)) in cases.iter().zip(&ends) {
                    let beyond = peak - case.fixed_mib();
                    let first = (ends[0].0, ends[0].1 - case.fixed_mib());
                    line([
                        case.loss.to_owned(),
                        threads.to_string(),
                        vocab.to_string(),
                        case.way.to_owned(),
                        case.chunk_logits.to_string(),
                        format!("{peak:.0}"),
                        format!("{beyond:.0}"),
                        format!("{:.2}", first.1 / beyond),
                        format!("{secs:.3}"),
                        format!("{:.2}", secs / first.0),
                    ]);
                }
            }
        }
    }
}
