//! The graph of steps that answers a question, and the identity of each step.
//!
//! A step's key is the hash of its settings, its seed, the keys of its inputs and the version of its code. So
//! arms share what they have in common, a changed arm runs alone, and a killed run goes on where it was.

pub mod build;
pub mod outside;

use serde::Serialize;
use sha2::{Digest, Sha256};
use unsay_data::Limits;
use unsay_losses::paired;
use unsay_losses::token::Loss;
use unsay_model::{Layers, Precision, Size, Trained};
use unsay_train::Settings;

use crate::manifest::question::{Evaluate, Iterate, LimitsBlock, MixtureBlock, Source};
use outside::Outside;

/// What a step does, with everything resolved.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Brings one role's examples into the normal form.
    Records {
        /// `pretraining`, `feedback` or `dialogue`.
        role: String,
        /// Where they come from.
        source: Source,
        /// Hash of the content, or version of the generator.
        fingerprint: String,
    },
    /// Looks at a base model from outside, and stands for it and its tokenizer.
    Base(Outside),
    /// Trains the tokenizer on the training splits.
    Tokenizer {
        /// Entries.
        vocab_size: usize,
    },
    /// Trains the base model.
    Pretrain {
        /// Its shape.
        model: Size,
        /// What it sees of an example.
        limits: LimitsBlock,
        /// The training.
        train: Settings,
    },
    /// Makes the states below what is trained, once for all trainings that begin with them.
    States {
        /// Of which examples.
        of: StatesOf,
        /// Up to which block.
        frozen: Frozen,
        /// What the model sees of an example.
        limits: LimitsBlock,
        /// The kind that the model computes in.
        #[serde(skip_serializing_if = "Precision::is_default")]
        precision: Precision,
    },
    /// Trains a classifier on one half of the labelled prompts.
    Classifier {
        /// A or B.
        which: Which,
        /// What it sees of an example.
        limits: LimitsBlock,
        /// Which parts of the model are trained.
        #[serde(skip_serializing_if = "Trained::is_default")]
        trained: Trained,
        /// The training.
        train: Settings,
    },
    /// Trains an arm.
    Train {
        /// The objective.
        loss: Loss,
        /// 1 for the first training.
        iteration: u32,
        /// What it sees of an example.
        limits: LimitsBlock,
        /// How batches are mixed.
        mixture: MixtureBlock,
        /// Which parts of the model are trained.
        #[serde(skip_serializing_if = "Trained::is_default")]
        trained: Trained,
        /// The training.
        train: Settings,
    },
    /// Takes the log-probabilities that the base model gives to the pairs, once for all trainings that compare with it.
    Reference {
        /// What it sees of an example.
        limits: LimitsBlock,
        /// The kind that it computes in.
        #[serde(skip_serializing_if = "Precision::is_default")]
        precision: Precision,
    },
    /// Trains an arm on pairs.
    TrainPairs {
        /// The objective.
        objective: paired::Objective,
        /// What it sees of an example.
        limits: LimitsBlock,
        /// Whether a prompt is computed once for both completions.
        share_prompt: bool,
        /// Which parts of the model are trained.
        #[serde(skip_serializing_if = "Trained::is_default")]
        trained: Trained,
        /// The training.
        train: Settings,
    },
    /// Generates replies to training prompts and labels them with classifier A.
    Rollout {
        /// The iteration whose model speaks.
        iteration: u32,
        /// How many, how sampled, how balanced.
        iterate: Iterate,
        /// What the model sees of a prompt.
        limits: Limits,
    },
    /// Measures a model.
    Evaluate {
        /// Best or last.
        checkpoint: Checkpoint,
        /// What is measured.
        evaluate: Evaluate,
        /// What the model sees of a prompt.
        limits: Limits,
        /// Prompts of the side-by-side samples.
        samples: Vec<String>,
    },
}

impl Kind {
    /// Part of the key: raised when the code of this kind of step changes what it writes.
    fn version(&self) -> u32 {
        match self {
            // 2: replies that were cut at the length limit are left out. 3: generation multiplies with packed weights and
            // refilled rows, which round in another order. 4: it adds keys and values up in another order.
            Self::Rollout { .. } => 4,
            // 2: value and gradient in one pass, which rounds in another order. 3: passes in stages, the wanted rows alone,
            // and products by the faster library, which all round elsewhere.
            Self::Pretrain { .. } | Self::Train { .. } => 3,
            // 2: the same, and generation likewise. 3: generation as of 4 above.
            Self::Evaluate { .. } => 3,
            // 2: as 3 of training.
            Self::Classifier { .. } | Self::States { .. } => 2,
            Self::Records { .. }
            | Self::Base(_)
            | Self::Tokenizer { .. }
            | Self::Reference { .. }
            | Self::TrainPairs { .. } => 1,
        }
    }

    /// Whether it computes with a model, so that the kind of device is part of what it is.
    fn computes(&self) -> bool {
        match self {
            Self::Records { .. } | Self::Base(_) | Self::Tokenizer { .. } => false,
            Self::Pretrain { .. }
            | Self::States { .. }
            | Self::Classifier { .. }
            | Self::Train { .. }
            | Self::Reference { .. }
            | Self::TrainPairs { .. }
            | Self::Rollout { .. }
            | Self::Evaluate { .. } => true,
        }
    }
}

/// Examples whose states are made together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StatesOf {
    /// Those that all arms train on.
    Arms {
        /// Whether the dialogue is among them.
        dialogue: bool,
    },
    /// Those of both classifiers.
    Classifiers {},
    /// The model's own replies of one round.
    Own {},
}

/// The blocks that a training leaves as they are, counted from the lowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Frozen {
    /// All but the last so many.
    AllBut {
        /// The trained ones.
        layers: usize,
    },
    /// Those below a block.
    Below {
        /// The lowest trained block.
        block: usize,
    },
}

impl Frozen {
    /// What a training of these parts leaves as it is; none where that is no whole block.
    pub fn of(trained: &Trained) -> Option<Self> {
        match trained {
            Trained::All {} => None,
            Trained::Top { layers } => Some(Self::AllBut { layers: *layers }),
            Trained::Lora(lora) => {
                let block = match lora.layers.as_ref()? {
                    Layers::List(list) => list.iter().copied().min()?,
                    Layers::Range { first, .. } => *first,
                };
                (block > 0).then_some(Self::Below { block })
            }
        }
    }

    /// How many they are in a model of so many blocks.
    pub fn blocks(self, n_blocks: usize) -> usize {
        match self {
            Self::AllBut { layers } => n_blocks.saturating_sub(layers),
            Self::Below { block } => block.min(n_blocks),
        }
    }
}

/// The two classifiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    /// Labels for iteration.
    A,
    /// Only evaluates.
    B,
}

impl Which {
    /// As used in metric names.
    pub fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }
}

/// Which weights of a training are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Checkpoint {
    /// Best by the validation objective.
    Best,
    /// The last.
    Last,
}

impl Checkpoint {
    /// As used in tables and as a folder name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Best => "best",
            Self::Last => "last",
        }
    }
}

/// A kind of device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// The processor.
    #[default]
    Cpu,
    /// A graphics card.
    Cuda,
}

impl Place {
    /// The kind of a device.
    pub fn of(device: tch::Device) -> Self {
        match device {
            tch::Device::Cuda(_) => Self::Cuda,
            _ => Self::Cpu,
        }
    }
}

/// One step of the graph.
#[derive(Clone, Debug)]
pub struct Step {
    /// Its identity, and the name of its folder in the store.
    pub key: String,
    /// What it does.
    pub kind: Kind,
    /// The run seed that its random streams start from.
    pub seed: u64,
    /// Inputs by role, as indices of earlier steps.
    pub inputs: Vec<(String, usize)>,
    /// Said in plans and progress.
    pub title: String,
    /// Processor threads.
    pub threads: usize,
}

impl Step {
    /// The index of the step that plays `role`.
    pub fn input(&self, role: &str) -> Option<usize> {
        self.inputs.iter().find(|(r, _)| r == role).map(|(_, i)| *i)
    }
}

/// What the results need to know of an evaluated model.
#[derive(Clone, Debug)]
pub struct Point {
    /// The arm.
    pub arm: String,
    /// The seed.
    pub seed: u64,
    /// Best or last.
    pub checkpoint: Checkpoint,
    /// Trainings so far: 0 for the base model.
    pub iteration: u32,
    /// True for the model that the arm ends with.
    pub last_iteration: bool,
    /// The evaluation step.
    pub evaluate: usize,
}

/// A training whose curve belongs to an arm and seed.
#[derive(Clone, Debug)]
pub struct Curve {
    /// The arm, or empty for what all arms share.
    pub arm: String,
    /// The seed.
    pub seed: u64,
    /// `pretrain`, `classifier-a`, `classifier-b`, `train`, `iteration-2`, …
    pub phase: String,
    /// The training step.
    pub step: usize,
}

/// The whole graph; every step comes after its inputs.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Where models compute. Of two devices of one kind the results are taken to be the same.
    pub device: Place,
    /// The steps.
    pub steps: Vec<Step>,
    /// Evaluated models.
    pub points: Vec<Point>,
    /// Trainings.
    pub curves: Vec<Curve>,
    /// Rollouts: arm, seed, iteration, step.
    pub rollouts: Vec<(String, u64, u32, usize)>,
}

impl Plan {
    /// Adds a step, or finds the equal one that is there already.
    fn add(&mut self, kind: Kind, seed: u64, inputs: &[(&str, usize)], title: String, threads: usize) -> usize {
        let inputs: Vec<(String, usize)> = inputs.iter().map(|(r, i)| ((*r).to_owned(), *i)).collect();
        let key = self.key(&kind, seed, &inputs, threads);
        if let Some(found) = self.steps.iter().position(|s| s.key == key) {
            return found;
        }
        self.steps.push(Step {
            key,
            kind,
            seed,
            inputs,
            title,
            threads,
        });
        self.steps.len() - 1
    }

    /// Adds the curve of a training that all arms share, once.
    fn curve(&mut self, phase: &str, seed: u64, step: usize) {
        if !self.curves.iter().any(|c| c.step == step) {
            self.curves.push(Curve {
                arm: String::new(),
                seed,
                phase: phase.to_owned(),
                step,
            });
        }
    }

    fn key(&self, kind: &Kind, seed: u64, inputs: &[(String, usize)], threads: usize) -> String {
        let inputs: Vec<_> = inputs.iter().map(|(role, i)| (role, &self.steps[*i].key)).collect();
        let mut identity = serde_json::json!({
            "version": kind.version(), "kind": kind, "seed": seed, "inputs": inputs, "threads": threads, "dtype": "float32",
        });
        if self.device == Place::Cuda && kind.computes() {
            identity["device"] = "cuda".into();
        }
        let hash = Sha256::digest(identity.to_string().as_bytes());
        hash.iter().take(12).map(|b| format!("{b:02x}")).collect()
    }
}
