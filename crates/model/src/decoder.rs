//! A language model: trunk and output embedding.

use std::path::Path;

use rand::Rng;
use tch::{Device, Kind, Tensor};

use crate::arch::Spec;
use crate::hf::{self, ModelClass};
use crate::shards::{self, LARGEST_SHARD, Wanted};
use crate::trunk::Trunk;
use crate::{Config, Error, Params, Result, init};

/// The file of a model folder that says what the model is.
pub(crate) const CONFIG: &str = "config.json";

const HEAD: &str = "lm_head.weight";

/// A decoder with its weights on one device, in f32 (or f64, for tests).
#[derive(Debug)]
pub struct Decoder {
    pub(crate) trunk: Trunk,
    /// Only when not tied.
    head: Option<Tensor>,
    pub(crate) params: Params,
}

impl Decoder {
    /// A new model. Weights are normal(0, `initializer_range`) from `rng`, tensor after tensor in the
    /// order of [`Params`]; the projections that write into the residual stream (`o_proj`, `down_proj`)
    /// are narrower by 1/√(2L), so that its variance does not grow with depth; norms are 1. Hugging Face's
    /// own initialisation does not scale these two.
    pub fn init(config: &Config, rng: &mut impl Rng, device: Device) -> Result<Self> {
        Self::init_kind(config, rng, device, Kind::Float)
    }

    /// The same in f32 or f64.
    pub fn init_kind(config: &Config, rng: &mut impl Rng, device: Device, kind: Kind) -> Result<Self> {
        config.check()?;
        check_kind(kind)?;
        let mut entries = Vec::new();
        for spec in expected(config) {
            let tensor = init::initial(config, &spec, rng, kind)?.f_to(device)?;
            entries.push((spec.name, tensor));
        }
        Self::assemble(config, Params::new(entries)?)
    }

    /// Reads a Hugging Face folder of any architecture, in one file or in shards. Half-precision weights become
    /// f32; f64 stays. Nothing is allocated that the folder's files do not hold.
    pub fn load(dir: &Path, device: Device) -> Result<Self> {
        Self::load_as(dir, device, None)
    }

    /// The same in f32 or f64, whatever is stored.
    pub fn load_kind(dir: &Path, device: Device, kind: Kind) -> Result<Self> {
        check_kind(kind)?;
        Self::load_as(dir, device, Some(kind))
    }

    fn load_as(dir: &Path, device: Device, kind: Option<Kind>) -> Result<Self> {
        let config = hf::read(dir, ModelClass::CausalLm)?;
        let mut wanted = wanted(&config);
        wanted.tensors = expected(&config);
        if config.tie_word_embeddings {
            wanted.copy = Some((HEAD, config.architecture.form().embedding()));
        }
        let entries = shards::read(dir, &wanted, kind, device)?;
        Self::assemble(&config, Params::new(entries)?)
    }

    /// Writes a Hugging Face folder, made if need be; each file is replaced whole or not at all, weights
    /// before their description. A tied output embedding is stored once; more than 5 GB go into shards.
    pub fn save(&self, dir: &Path) -> Result<()> {
        save(dir, self.config(), &self.params, ModelClass::CausalLm, None)
    }

    /// The same with the weights rounded to f32, bf16 or f16.
    pub fn save_as(&self, dir: &Path, kind: Kind) -> Result<()> {
        if !matches!(kind, Kind::Float | Kind::BFloat16 | Kind::Half) {
            let got = format!("{kind:?}");
            return Err(Error::input("kind of stored weights", "Float, BFloat16 or Half", got));
        }
        save(dir, self.config(), &self.params, ModelClass::CausalLm, Some(kind))
    }

    /// The same model, rounding to f32 where transformers does whatever the kind of the weights: RMS norms,
    /// rotary angles and, with `softmax` (its `eager` attention), the weights of attention. Only f64 models
    /// show it; equality with transformers in f64 beyond seven digits needs it. Generation keeps its softmax.
    #[must_use]
    pub fn rounded_like_transformers(mut self, softmax: bool) -> Self {
        self.trunk.round_to_f32(softmax);
        self
    }

    /// What the model is.
    pub fn config(&self) -> &Config {
        &self.trunk.config
    }

    /// What an optimiser updates.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.trunk.device()
    }

    /// Final states [B, T, D] of ids [B, T] (Int64), after the last norm. Padding on the right is harmless:
    /// nothing before it sees it.
    pub fn hidden(&self, ids: &Tensor) -> Result<Tensor> {
        self.trunk.hidden(ids)
    }

    /// The same for rows padded anywhere, `real` [B, T] (Bool) true where a token counts. Positions count
    /// real tokens; states at padding mean nothing.
    pub fn hidden_with_mask(&self, ids: &Tensor, real: &Tensor) -> Result<Tensor> {
        self.trunk.hidden_with_mask(ids, real)
    }

    /// The names of the linear maps in the blocks, such as `model.layers.0.self_attn.q_proj`, in order; their
    /// weights are the parameters of that name with `.weight`.
    pub fn linear_modules(&self) -> Vec<String> {
        self.trunk.linear.iter().map(|map| map.module.clone()).collect()
    }

    /// The matrix [V, D] that turns a state into logits.
    pub fn output_embedding(&self) -> Tensor {
        self.head.as_ref().unwrap_or(&self.trunk.embedding).shallow_clone()
    }

    fn assemble(config: &Config, params: Params) -> Result<Self> {
        let trunk = Trunk::new(config, &params)?;
        let head = if config.tie_word_embeddings {
            None
        } else {
            Some(params.shared(HEAD)?)
        };
        Ok(Self { trunk, head, params })
    }
}

fn expected(config: &Config) -> Vec<Spec> {
    let mut list = config.architecture.form().tensors(config);
    if !config.tie_word_embeddings {
        list.push(Spec::matrix(HEAD, config.vocab_size, config.hidden_size));
    }
    list
}

fn check_kind(kind: Kind) -> Result<()> {
    if matches!(kind, Kind::Float | Kind::Double) {
        return Ok(());
    }
    Err(Error::input("kind of weights", "Float or Double", format!("{kind:?}")))
}

/// What the folder of a trunk must and may hold.
pub(crate) fn wanted(config: &Config) -> Wanted {
    let form = config.architecture.form();
    Wanted {
        tensors: form.tensors(config),
        prefix: form.prefix(),
        buffers: form.buffers(config),
        copy: None,
    }
}

/// Shared with the classifier.
pub(crate) fn save(dir: &Path, config: &Config, params: &Params, class: ModelClass, kind: Option<Kind>) -> Result<()> {
    if params.adapter().is_some() {
        let got = "one with an adapter\nhint: merge the adapter, or save it by itself";
        return Err(Error::input("model to write", "a model without an adapter", got));
    }
    std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    let tensors: Vec<_> = params.iter().collect();
    shards::write(dir, &tensors, kind, LARGEST_SHARD)?;
    let double = tensors.iter().any(|(_, t)| t.f_kind().is_ok_and(|k| k == Kind::Double));
    let dtype = match kind {
        Some(Kind::BFloat16) => "bfloat16",
        Some(Kind::Half) => "float16",
        None if double => "float64",
        _ => "float32",
    };
    hf::write(&dir.join(CONFIG), config, class, dtype)
}
