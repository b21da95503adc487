//! Our worker: the real loop and the real engine behind the driver's questions.

mod complete;
mod train;

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use tch::Kind;
use unsay_model::{Decoder, Precision};

use crate::process;
use crate::protocol::{Answer, Ask, Data, Hello, Loaded, Ran, Task, Weights, Work};

/// What one step gave.
struct Made {
    tokens: u64,
    values: BTreeMap<String, f64>,
    ids: Vec<Vec<u32>>,
}

/// Something that can be done again and again.
trait Job {
    /// What it found.
    fn loaded(&self) -> Loaded;

    /// Does it once.
    fn step(&mut self) -> Result<Made>;
}

/// Answers questions until the driver has no more.
pub(crate) fn serve(input: impl BufRead, mut output: impl Write) -> Result<()> {
    let mut answer = |answer: &Answer| -> Result<()> {
        writeln!(output, "{}", serde_json::to_string(answer)?)?;
        Ok(output.flush()?)
    };
    answer(&Answer::Hello(hello()?))?;
    let mut job: Option<Box<dyn Job>> = None;
    for line in input.lines() {
        let ask: Ask = serde_json::from_str(&line?).context("a question that is none")?;
        let done = match ask {
            Ask::Quit => break,
            Ask::Load(work) => load(&work).map(|loaded| {
                let answer = Answer::Loaded(loaded.loaded());
                job = Some(loaded);
                answer
            }),
            Ask::Run { n } => match &mut job {
                Some(job) => run(job.as_mut(), n).map(Answer::Ran),
                None => bail!("asked to run before anything was loaded"),
            },
        };
        match done {
            Ok(done) => answer(&done)?,
            Err(error) => {
                return answer(&Answer::Failed {
                    why: format!("{error:#}"),
                });
            }
        }
    }
    Ok(())
}

fn hello() -> Result<Hello> {
    // Whatever libtorch makes once, it has made.
    let one = tch::Tensor::f_ones([64, 64], (Kind::Float, tch::Device::Cpu))?;
    let _ = one.f_matmul(&one)?;
    let libtorch = process::libtorch()?;
    let version = env!("CARGO_PKG_VERSION");
    let versions = [("unsay", version), ("libtorch", "2.11.0")];
    Ok(Hello {
        threads: usize::try_from(tch::get_num_threads())?,
        versions: versions
            .map(|(name, version)| (name.to_owned(), version.to_owned()))
            .into(),
        libtorch: process::sha256(&libtorch)?,
        rss_mib: process::status_mib("self", "VmRSS")?,
    })
}

fn load(work: &Work) -> Result<Box<dyn Job>> {
    match work.task {
        Task::Sft | Task::Cringe => train::language(work),
        Task::Dpo | Task::Reward => bail!("the loop does not train on pairs yet"),
        Task::Greedy | Task::Sample => complete::completions(work),
    }
}

fn run(job: &mut dyn Job, n: usize) -> Result<Ran> {
    let mut ran = Ran::default();
    let busy = process::cpu_secs()?;
    for _ in 0..n {
        let start = Instant::now();
        let made = job.step()?;
        ran.secs.push(start.elapsed().as_secs_f64());
        ran.tokens.push(made.tokens);
        for (name, value) in made.values {
            ran.values.entry(name).or_default().push(value);
        }
        ran.ids = made.ids;
    }
    ran.cpu_secs = process::cpu_secs()? - busy;
    ran.rss_mib = process::status_mib("self", "VmRSS")?;
    ran.peak_mib = process::status_mib("self", "VmHWM")?;
    Ok(ran)
}

/// How a way says to compute.
fn precision(way: &str) -> Result<Precision> {
    match way.split('+').next() {
        Some("fp32") => Ok(Precision::Fp32 {}),
        Some("bf16") => Ok(Precision::Bf16 { even_if_slower: true }),
        _ => bail!("way `{way}`: expected `fp32` or `bf16` first"),
    }
}

/// The kind of products in PyTorch's words.
fn compute(precision: Precision) -> String {
    match precision.kind() {
        Kind::BFloat16 => "bfloat16",
        _ => "float32",
    }
    .to_owned()
}

fn weights(decoder: &Decoder) -> Result<Weights> {
    let mut all = Weights {
        n: 0,
        sum: 0.0,
        abs: 0.0,
    };
    for (_, tensor) in decoder.params().iter() {
        all.n += tensor.numel() as u64;
        // In pieces, so that the peak of memory is not that of this count.
        for piece in tensor.f_detach()?.f_view([-1])?.f_split(1 << 20, 0)? {
            let wide = piece.f_to_kind(Kind::Double)?;
            all.sum += wide.f_sum(Kind::Double)?.f_double_value(&[])?;
            all.abs += wide.f_abs()?.f_sum(Kind::Double)?.f_double_value(&[])?;
        }
    }
    Ok(all)
}

fn data(rows: &[&[u32]], targets: usize) -> Data {
    let ids = rows.iter().flat_map(|row| row.iter());
    let weighted = (1_u64..).zip(ids.clone()).map(|(place, &id)| place * u64::from(id));
    Data {
        tokens: ids.count() as u64,
        targets: targets as u64,
        checksum: weighted.sum(),
    }
}
