//! A language model: trunk and output embedding.

use std::path::Path;

use rand::Rng;
use tch::{Device, Kind, Tensor};

use crate::arch::Spec;
use crate::hf::{self, ModelClass};
use crate::shards::{self, LARGEST_SHARD, Wanted};
use crate::trunk::{Rounding, Trunk};
use crate::{Config, Error, Params, Precision, Products, Result, Trained, init};

/// The file of a model folder that says what the model is.
pub(crate) const CONFIG: &str = "config.json";

const HEAD: &str = "lm_head.weight";

/// A decoder with its weights on one device, in f32 (or f64, for tests) unless [`Decoder::with_precision`] says
/// otherwise.
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
    /// before their description. A tied output embedding is stored once; more than 5 GB go into shards. A model
    /// that computes in bf16 is stored in f32.
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

    /// The same model, rounding in these places as transformers does. For comparisons: cached steps of generation
    /// keep their attention.
    #[must_use]
    pub fn rounding_like_transformers(mut self, places: Rounding) -> Self {
        self.trunk.round(places);
        self
    }

    /// The same model computing in another precision. In bf16 the f32 weights are kept beside their rounded copies, so that
    /// what is saved is not rounded; those below an adapter are not, so put it on first.
    ///
    /// **Errors**: those of [`Precision::check`]; [`Error::Input`] for bf16 from f64 weights.
    pub fn with_precision(self, precision: Precision) -> Result<Self> {
        precision.check(self.device())?;
        if self.params.is_of(precision.kind())? {
            return Ok(self);
        }
        let Self { trunk, params, .. } = self;
        Self::assemble(&trunk.config, params.into_kind(precision.kind())?)
    }

    /// The same model, of which a part is trained. `rng` begins an adapter; one that is on already with the same settings
    /// is trained on.
    ///
    /// **Errors**: [`Error::Config`] for more blocks than there are; those of [`Decoder::add_lora`].
    pub fn with_trained(mut self, trained: &Trained, rng: &mut impl Rng) -> Result<Self> {
        self.params.choose(trained, self.trunk.n_blocks())?;
        match trained {
            Trained::Lora(lora) if self.is_adapted(lora)? => self.train_adapter()?,
            Trained::Lora(lora) => self.add_lora(lora, rng)?,
            Trained::All {} | Trained::Top { .. } => {}
        }
        Ok(self)
    }

    /// Replaces the weights by those of a folder of the same description. What is trained and the precision stay.
    ///
    /// **Errors**: those of [`Decoder::load`], and [`Error::Input`] when names or shapes differ.
    pub fn read_weights(&mut self, dir: &Path) -> Result<()> {
        let read = Self::load(dir, self.device())?;
        self.params.assign(read.params.iter())
    }

    /// Embedding, blocks and final norm.
    pub fn trunk(&self) -> &Trunk {
        &self.trunk
    }

    /// The same model, whose whole sequences are multiplied by another library; where that does not apply, as before. The
    /// faster one is taken where nothing is said.
    #[must_use]
    pub fn multiplying_by(mut self, products: Products) -> Self {
        self.trunk.multiply_by(products);
        self
    }

    /// Who multiplies where whole sequences are read.
    pub fn products(&self) -> Products {
        self.trunk.products()
    }

    /// What the model is.
    pub fn config(&self) -> &Config {
        &self.trunk.config
    }

    /// What an optimiser updates.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The same model with a token that fills rows up, where its description names none: a classifier on it needs one.
    #[must_use]
    pub fn with_pad_token(mut self, id: Option<u32>) -> Self {
        let pad = &mut self.trunk.config.pad_token_id;
        *pad = pad.or(id);
        self
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
    // What was below an adapter in bf16 has no weights in f32 beside.
    let narrow = tensors
        .iter()
        .any(|(_, t)| t.f_kind().is_ok_and(|k| k == Kind::BFloat16));
    let stored = kind.or(narrow.then_some(Kind::Float));
    shards::write(dir, &tensors, stored, LARGEST_SHARD)?;
    let double = tensors.iter().any(|(_, t)| t.f_kind().is_ok_and(|k| k == Kind::Double));
    let dtype = match kind {
        Some(Kind::BFloat16) => "bfloat16",
        Some(Kind::Half) => "float16",
        None if double => "float64",
        _ => "float32",
    };
    hf::write(&dir.join(CONFIG), config, class, dtype)
}
