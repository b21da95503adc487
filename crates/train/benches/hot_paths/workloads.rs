//! What is timed of this crate by `cargo bench` and guarded by `just bench-gate`: names and set-ups. A work does the same each time.
#![allow(clippy::unwrap_used, reason = "a benchmark may stop at the first error")]

use std::hint::black_box;

use tch::{Device, Kind};
use unsay_data::{Branch, Encoded, EncodedPair, Label, Span, stream};
use unsay_losses::paired::{self, Dpo};
use unsay_losses::scores::{self, BradleyTerry};
use unsay_losses::token::{Cringe, Loss};
use unsay_model::{Config, Decoder, LoraConfig, Precision, SequenceClassifier, Size, TargetModules, Trained};
use unsay_train::{
    AdamW, Examples, Fit, LanguageObjective, Objective, PairedObjective, Reference, ReferenceLogps, RewardObjective,
    Settings, Source, grad_norm,
};

/// A work that can be done again and again.
pub(crate) type Work = Box<dyn FnMut()>;

/// Makes what a work needs.
pub(crate) type Make = fn() -> Work;

/// Every work, by name; beside them [`TIMED`].
pub(crate) const WORKLOADS: [(&str, Make); 6] = [
    ("train/step_nll/8x32", || step(model(), nll(), Precision::default())),
    ("train/step_cringe/8x32", || {
        step(model(), Loss::Cringe(Cringe::new(1.0, 5)), Precision::default())
    }),
    ("train/step_lora/8x32", || step(adapted(), nll(), Precision::default())),
    ("train/step_dpo/4x2x32", step_of_pairs),
    ("train/step_reward/4x2x32", step_of_rewards),
    ("train/adamw/0.1M", adamw),
];

/// Works whose instructions say nothing: valgrind shows no processor with bf16, where libtorch takes other kernels.
pub(crate) const TIMED: [(&str, Make); 1] = [("train/step_bf16/8x32", || {
    step(model(), nll(), Precision::Bf16 { even_if_slower: true })
})];

const VOCAB: usize = 512;

/// Two blocks of width 64.
fn model() -> Decoder {
    let size = Size {
        hidden_size: 64,
        intermediate_size: 176,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 4,
    };
    let config = Config::new(&size, VOCAB, 64);
    Decoder::init(&config, &mut stream(0, "init", 0), Device::Cpu).unwrap()
}

/// The same with an adapter of rank 8 on every linear map, which alone is trained.
fn adapted() -> Decoder {
    let lora = LoraConfig {
        r: 8,
        alpha: 16.0,
        target_modules: TargetModules::AllLinear,
        layers: None,
        use_rslora: false,
    };
    let trained = Trained::Lora(lora);
    model().with_trained(&trained, &mut stream(0, "lora", 0)).unwrap()
}

fn nll() -> Loss {
    Loss::Nll(Default::default())
}

fn source(n: usize) -> Source {
    let one = |example: usize| Encoded {
        ids: (0..32)
            .map(|at| 4 + (example as u32 * 31 + at * 17) % (VOCAB as u32 - 4))
            .collect(),
        spans: vec![Span {
            start: 16,
            end: 32,
            ended: false,
        }],
        label: if example.is_multiple_of(2) {
            Label::Positive
        } else {
            Label::Negative
        },
        example,
    };
    Source {
        encoded: (0..n).map(one).collect(),
        ids: Vec::new(),
        weight: 1.0,
    }
}

/// A whole step of the loop on the same 8 examples, in another order each time: batch, forward, loss, backward, clipping, AdamW, record.
fn step(model: Decoder, loss: Loss, precision: Precision) -> Work {
    let examples = Examples::new(vec![source(8)], source(8)).unwrap();
    let objective = LanguageObjective::new(model, loss, examples).unwrap();
    steps(objective, 8, precision, tempfile::tempdir().unwrap())
}

/// Four pairs of a prompt of 16 and completions of 16.
fn pairs() -> Source<EncodedPair> {
    let ids = |from: u32| -> Vec<u32> {
        (0..16)
            .map(|at| 4 + (from * 31 + at * 17) % (VOCAB as u32 - 4))
            .collect()
    };
    let branch = |from| Branch {
        ids: ids(from),
        n_learnt: 16,
    };
    let one = |example: usize| EncodedPair {
        prompt: ids(example as u32),
        chosen: branch(100 + example as u32),
        rejected: branch(200 + example as u32),
        example,
    };
    Source {
        encoded: (0..4).map(one).collect(),
        ids: Vec::new(),
        weight: 1.0,
    }
}

/// The same of DPO on 4 pairs, the reference's log-probs made before, as a store has them.
fn step_of_pairs() -> Work {
    let folder = tempfile::tempdir().unwrap();
    let (train, valid) = (pairs(), pairs());
    let files = [("train", &train), ("valid", &valid)].map(|(name, set)| {
        let path = folder.path().join(name);
        ReferenceLogps::write(&path, &model(), &set.encoded, &mut |_| (), &|| false).unwrap();
        ReferenceLogps::open(&path, &set.encoded).unwrap()
    });
    let loss = paired::Objective::from(paired::Loss::Dpo(Dpo {
        beta: 0.1,
        label_smoothing: 0.0,
    }));
    let examples = Examples::new(vec![train], valid).unwrap();
    let objective = PairedObjective::new(model(), loss, examples, Reference::Logps(files.into())).unwrap();
    steps(objective, 4, Precision::default(), folder)
}

/// The same of a reward model.
fn step_of_rewards() -> Work {
    let classifier = SequenceClassifier::with_labels(model(), 1, &mut stream(0, "score", 0)).unwrap();
    let loss = scores::Loss::BradleyTerry(BradleyTerry { centre: 0.0 });
    let examples = Examples::new(vec![pairs()], pairs()).unwrap();
    let objective = RewardObjective::new(classifier, loss, examples).unwrap();
    steps(objective, 4, Precision::default(), tempfile::tempdir().unwrap())
}

/// The loop over `batch` examples at a time.
fn steps<O: Objective + 'static>(objective: O, batch: usize, precision: Precision, folder: tempfile::TempDir) -> Work {
    let run = folder.path().join("run");
    let settings = Settings {
        precision,
        ..Settings::new(1 << 40, batch, 1e-4)
    };
    let mut fit = Fit::open(objective, &settings, 0, &run).unwrap();
    Box::new(move || {
        black_box(fit.next().unwrap().unwrap());
        black_box(&folder);
    })
}

/// The gradients' norm and an update of all weights.
fn adamw() -> Work {
    let model = model();
    let ids = tch::Tensor::arange(32, (Kind::Int64, Device::Cpu)).view([1, 32]);
    model.hidden(&ids).unwrap().sum(Kind::Float).backward();
    let mut optimiser = AdamW::new(model.params(), (0.9, 0.999), 1e-8, 0.01).unwrap();
    Box::new(move || {
        black_box(grad_norm(model.params()).unwrap().double_value(&[]));
        optimiser.step(model.params(), 1e-4, 1.0).unwrap();
    })
}
