//! What a results folder says of itself beside its tables: the question, what to draw, and where it was made.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use unsay_report::{FigureSpec, SummarySpec};

use crate::commands::Prepared;
use crate::manifest::question::Question;
use crate::plan::Checkpoint;
use crate::steps::EvaluationFile;
use crate::store::{COMMIT, Store, write_atomic};

/// The file in the results folder.
pub(super) const FILE: &str = "about.json";

/// Everything that the page and the figures need and no table holds.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct About {
    /// Name of the experiment.
    pub(super) name: String,
    /// Profile.
    pub(super) profile: String,
    /// The question.
    pub(super) question: String,
    /// Shown before generated text.
    pub(super) content_warning: Option<String>,
    /// Arms in the order of the manifest.
    pub(super) arms: Vec<String>,
    /// Run seeds.
    pub(super) seeds: Vec<u64>,
    /// `valid` or `test`.
    pub(super) split: String,
    /// Values given with `--set`.
    pub(super) overrides: Vec<String>,
    /// The table of the page.
    pub(super) table: SummarySpec,
    /// The figures.
    pub(super) figures: Vec<FigureSpec>,
    /// Prompts with a reply of every arm, from the first seed.
    pub(super) samples: Vec<SampleRow>,
    /// Commits of the programs that made the steps, the cached ones included.
    pub(super) step_commits: Vec<String>,
    /// Where and with what it was made.
    pub(super) environment: Environment,
    /// Seconds of work by kind of step, summed over steps; steps run side by side.
    pub(super) seconds: Vec<(String, f64)>,
}

/// One prompt.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SampleRow {
    /// The prompt.
    pub(super) prompt: String,
    /// Arm and reply.
    pub(super) replies: Vec<(String, String)>,
}

/// Where a run was made.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Environment {
    /// Version of unsay.
    pub(super) unsay: String,
    /// Commit that the program was built from, with `+changes` when a crate had changes beside it.
    pub(super) commit: String,
    /// Version of libtorch that this was built for.
    pub(super) libtorch: String,
    /// Processor.
    pub(super) processor: String,
    /// Cores.
    pub(super) cores: usize,
    /// Arithmetic.
    pub(super) dtype: String,
}

impl About {
    /// What there is to say about a finished run.
    pub(super) fn of(p: &Prepared, store: &Store, overrides: &[String]) -> Result<Self> {
        let q = &p.question;
        Ok(Self {
            name: q.name.clone(),
            profile: p.profile.clone(),
            question: q.question.clone(),
            content_warning: q.content_warning.clone(),
            arms: q.arms.keys().cloned().collect(),
            seeds: q.seeds.clone(),
            split: q.evaluate.split.name().to_owned(),
            overrides: overrides.to_vec(),
            table: q.table.clone(),
            figures: q.figures.clone(),
            samples: samples(p, store)?,
            step_commits: p
                .plan
                .steps
                .iter()
                .filter_map(|step| store.commit(step))
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect(),
            environment: Environment::of(q),
            seconds: seconds(p, store),
        })
    }

    /// Reads it from a results folder.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("`{}` is not as written by unsay", path.display()))
    }

    /// Writes it into a results folder.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        write_atomic(
            &folder.join(FILE),
            format!("{}\n", serde_json::to_string_pretty(self)?).as_bytes(),
        )
    }
}

fn samples(p: &Prepared, store: &Store) -> Result<Vec<SampleRow>> {
    let Some(seed) = p.question.seeds.first() else {
        return Ok(Vec::new());
    };
    let mut rows: Vec<SampleRow> = p
        .question
        .samples
        .iter()
        .map(|prompt| SampleRow {
            prompt: prompt.clone(),
            replies: Vec::new(),
        })
        .collect();
    for arm in p.question.arms.keys() {
        let found = p
            .plan
            .points
            .iter()
            .find(|x| x.arm == *arm && x.seed == *seed && x.last_iteration && x.checkpoint == Checkpoint::Best);
        let point = found.with_context(|| format!("arm `{arm}` was not evaluated"))?;
        let file = EvaluationFile::read(&store.dir(&p.plan.steps[point.evaluate]))?;
        for (row, sample) in rows.iter_mut().zip(file.samples) {
            row.replies.push((arm.clone(), sample.completion.trim().to_owned()));
        }
    }
    Ok(rows)
}

fn seconds(p: &Prepared, store: &Store) -> Vec<(String, f64)> {
    let mut out: Vec<(String, f64)> = Vec::new();
    for step in &p.plan.steps {
        let kind = step.title.split([' ', ':', ',']).next().unwrap_or_default().to_owned();
        let secs = store.wall_secs(step).unwrap_or(0.0);
        match out.iter_mut().find(|(k, _)| *k == kind) {
            Some((_, sum)) => *sum += secs,
            None => out.push((kind, secs)),
        }
    }
    out
}

impl Environment {
    fn of(q: &Question) -> Self {
        let trainings = [
            Some(&q.classifiers.train),
            Some(&q.finetune.train),
            q.base.trained().map(|made| &made.train),
        ];
        let speaking = [Some(q.evaluate.precision), q.iterate.as_ref().map(|i| i.precision)];
        let trainings = trainings.into_iter().flatten().map(|train| train.precision);
        let narrow = trainings.chain(speaking.into_iter().flatten()).any(|p| !p.is_default());
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu
            .lines()
            .find(|l| l.starts_with("model name"))
            .and_then(|l| l.split(": ").nth(1));
        Self {
            unsay: env!("CARGO_PKG_VERSION").into(),
            commit: COMMIT.into(),
            libtorch: "2.11.0".into(),
            processor: model.unwrap_or("unknown").to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            dtype: if narrow { "float32 and bf16" } else { "float32" }.into(),
        }
    }
}
