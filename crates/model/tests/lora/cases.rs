//! The folder of cases that `make.py` writes.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use tch::{Device, Kind, Tensor};
use unsay_model::{Decoder, Error, LoraConfig, Params, Rounding, SequenceClassifier, weights};

/// How many cases there are.
pub(crate) const CASES: usize = 9;

/// PEFT ran on transformers with attention step by step.
const ROUNDING: Rounding = Rounding {
    norms: true,
    frequencies: true,
    angles: true,
    eager: true,
    later_too: false,
    padding_at_one: false,
};

/// One checkpoint with an adapter and what PEFT computed.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
    pub(crate) ids: Tensor,
    pub(crate) lengths: Tensor,
    pub(crate) expected: HashMap<String, Tensor>,
}

/// All of them.
pub(crate) fn cases() -> Vec<Case> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lora/cases");
    let mut folders: Vec<PathBuf> = fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
    folders.sort();
    assert_eq!(folders.len(), CASES);
    folders.into_iter().map(Case::read).collect()
}

/// The one with this name.
pub(crate) fn case(name: &str) -> Case {
    cases().into_iter().find(|c| c.name == name).unwrap()
}

impl Case {
    fn read(folder: PathBuf) -> Self {
        tch::set_num_threads(1);
        let inputs: Value = serde_json::from_slice(&fs::read(folder.join("inputs.json")).unwrap()).unwrap();
        let ids: Vec<Vec<i64>> = serde_json::from_value(inputs["input_ids"].clone()).unwrap();
        let lengths: Vec<i64> = serde_json::from_value(inputs["lengths"].clone()).unwrap();
        let expected = weights::read(&folder.join("expected.safetensors")).unwrap();
        Self {
            name: folder.file_name().unwrap().to_str().unwrap().to_owned(),
            ids: Tensor::from_slice2(&ids),
            lengths: Tensor::from_slice(&lengths),
            expected: expected.into_iter().collect(),
            folder,
        }
    }

    pub(crate) fn adapter(&self) -> PathBuf {
        self.folder.join("adapter")
    }

    /// The checkpoint without its adapter.
    pub(crate) fn model(&self) -> Model {
        let base = self.folder.join("base");
        if self.name.starts_with("classifier") {
            let model = SequenceClassifier::load(&base, Device::Cpu).unwrap();
            Model::Classifier(model.rounding_like_transformers(ROUNDING))
        } else {
            let model = Decoder::load(&base, Device::Cpu).unwrap();
            Model::Decoder(model.rounding_like_transformers(ROUNDING))
        }
    }

    /// Relative to the largest number of the tensor: fp64 as exact as sums in another order are, fp32 likewise.
    pub(crate) fn assert_equal(&self, name: &str, got: &Tensor) {
        let expected = &self.expected[name];
        let got = got.detach();
        assert_eq!(got.size(), expected.size(), "{}: {name}", self.name);
        assert_eq!(got.kind(), expected.kind(), "{}: {name}", self.name);
        let number = |t: Tensor| t.to_kind(Kind::Double).double_value(&[]);
        let largest = number(expected.abs().max());
        assert!(largest > 1e-3, "{}: {name} is flat", self.name);
        let difference = number((&got - expected).abs().max()) / largest;
        let most = if expected.kind() == Kind::Double { 1e-10 } else { 1e-5 };
        assert!(difference < most, "{}: {name} differs by {difference:e}", self.name);
    }
}

/// Either kind of model, as far as an adapter is concerned.
#[derive(Debug)]
pub(crate) enum Model {
    Decoder(Decoder),
    Classifier(SequenceClassifier),
}

impl Model {
    pub(crate) fn load_adapter(&mut self, dir: &Path) -> Result<Vec<String>, Error> {
        match self {
            Self::Decoder(model) => model.load_adapter(dir),
            Self::Classifier(model) => model.load_adapter(dir),
        }
    }

    pub(crate) fn add_lora(&mut self, settings: &LoraConfig, seed: u64) -> Result<(), Error> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        match self {
            Self::Decoder(model) => model.add_lora(settings, &mut rng),
            Self::Classifier(model) => model.add_lora(settings, &mut rng),
        }
    }

    pub(crate) fn save_adapter(&self, dir: &Path) -> Result<(), Error> {
        match self {
            Self::Decoder(model) => model.save_adapter(dir, "some/base"),
            Self::Classifier(model) => model.save_adapter(dir, "some/base"),
        }
    }

    pub(crate) fn merge_adapter(&mut self) -> Result<(), Error> {
        match self {
            Self::Decoder(model) => model.merge_adapter(),
            Self::Classifier(model) => model.merge_adapter(),
        }
    }

    pub(crate) fn adapter(&self) -> Option<&LoraConfig> {
        match self {
            Self::Decoder(model) => model.adapter(),
            Self::Classifier(model) => model.adapter(),
        }
    }

    pub(crate) fn params(&self) -> &Params {
        match self {
            Self::Decoder(model) => model.params(),
            Self::Classifier(model) => model.params(),
        }
    }

    /// [B, T, V], or [B, K] for a classifier.
    pub(crate) fn logits(&self, case: &Case) -> Tensor {
        match self {
            Self::Decoder(model) => logits(model, &case.ids),
            Self::Classifier(model) => {
                let logits = model.logits(&case.ids, &case.lengths).unwrap();
                logits.view([case.ids.size()[0], -1])
            }
        }
    }
}

pub(crate) fn logits(model: &Decoder, ids: &Tensor) -> Tensor {
    model
        .hidden(ids)
        .unwrap()
        .linear(&model.output_embedding(), None::<&Tensor>)
}

/// The number whose gradient the cases hold.
pub(crate) fn loss(case: &Case, logits: &Tensor) -> Tensor {
    if case.name.starts_with("classifier") {
        let weights = Tensor::linspace(1.0, 2.0, logits.numel() as i64, (logits.kind(), Device::Cpu));
        return (logits * weights.view_as(logits)).tanh().sum(logits.kind());
    }
    let (width, vocab) = (logits.size()[1], logits.size()[2]);
    let predicted = logits.narrow(1, 0, width - 1).reshape([-1, vocab]);
    let targets = case.ids.narrow(1, 1, width - 1).reshape([-1]);
    predicted.log_softmax(-1, predicted.kind()).nll_loss(&targets)
}

/// Names and bytes of every tensor.
pub(crate) fn bits(params: &Params) -> Vec<(String, Vec<u8>)> {
    let bytes = |t: &Tensor| {
        let mut bytes = vec![0; t.numel() * t.kind().elt_size_in_bytes()];
        t.detach().copy_data_u8(&mut bytes, t.numel());
        bytes
    };
    params.iter().map(|(n, t)| (n.to_owned(), bytes(t))).collect()
}
