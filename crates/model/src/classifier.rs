//! One score per sequence.

use std::path::Path;

use rand::Rng;
use tch::{Device, Kind, Tensor};

use crate::arch::Spec;
use crate::decoder::{save, wanted};
use crate::hf::{self, ModelClass};
use crate::linear::linear;
use crate::logps::wide;
use crate::shards;
use crate::trunk::Trunk;
use crate::{Config, Decoder, Error, Params, Precision, Result, Trained, init};

const SCORE: &str = "score.weight";

/// A decoder trunk and a linear score of its state at the last real token, stored like Hugging Face's
/// `LlamaForSequenceClassification` with one label. A logit above 0 means positive.
#[derive(Debug)]
pub struct SequenceClassifier {
    trunk: Trunk,
    score: Tensor,
    params: Params,
}

impl SequenceClassifier {
    /// A classifier on the weights of a decoder, whose own output embedding is dropped if it is not tied.
    /// The score is normal(0, `initializer_range`) from `rng`.
    pub fn from_trunk(decoder: Decoder, rng: &mut impl Rng) -> Result<Self> {
        let config = decoder.config().clone();
        let whole = |name: &str| match decoder.params.get(name) {
            Some(tensor) => Ok(tensor.f_detach()?),
            None => decoder.params.shared(name),
        };
        let kind = whole(config.architecture.form().embedding())?.f_kind()?;
        let score = init::normal(rng, &[1, config.hidden_size as i64], config.initializer_range, kind)?;
        let mut entries = Vec::new();
        for spec in config.architecture.form().tensors(&config) {
            let tensor = whole(&spec.name)?;
            entries.push((spec.name, tensor));
        }
        entries.push((SCORE.to_owned(), score.f_to(decoder.device())?));
        Self::assemble(&config, Params::new(entries)?)
    }

    /// Reads a Hugging Face folder.
    pub fn load(dir: &Path, device: Device) -> Result<Self> {
        let config = hf::read(dir, ModelClass::SequenceClassification)?;
        let mut wanted = wanted(&config);
        wanted.tensors.push(Spec::matrix(SCORE, 1, config.hidden_size));
        let entries = shards::read(dir, &wanted, None, device)?;
        Self::assemble(&config, Params::new(entries)?)
    }

    /// Writes a Hugging Face folder; each file is replaced whole or not at all. Hugging Face finds the
    /// last real token by `pad_token_id`, so that must be set.
    pub fn save(&self, dir: &Path) -> Result<()> {
        if self.config().pad_token_id.is_none() {
            return Err(Error::input("`pad_token_id` of a classifier", "a token id", "none"));
        }
        save(
            dir,
            self.config(),
            &self.params,
            ModelClass::SequenceClassification,
            None,
        )
    }

    /// The same classifier computing in another precision; see [`Decoder::with_precision`].
    pub fn with_precision(self, precision: Precision) -> Result<Self> {
        precision.check(self.device())?;
        if self.params.is_of(precision.kind())? {
            return Ok(self);
        }
        let Self { trunk, params, .. } = self;
        Self::assemble(&trunk.config, params.into_kind(precision.kind())?)
    }

    /// The same classifier, of which a part is trained; its score always is.
    ///
    /// **Errors**: [`Error::Config`] for more blocks than there are.
    pub fn with_trained(mut self, trained: &Trained) -> Result<Self> {
        self.params.choose(trained, self.trunk.n_blocks())?;
        Ok(self)
    }

    /// Replaces the weights by those of a folder of the same description. What is trained and the precision stay.
    ///
    /// **Errors**: those of [`SequenceClassifier::load`], and [`Error::Input`] when names or shapes differ.
    pub fn read_weights(&mut self, dir: &Path) -> Result<()> {
        let read = Self::load(dir, self.device())?;
        self.params.assign(read.params.iter())
    }

    /// Embedding, blocks and final norm.
    pub fn trunk(&self) -> &Trunk {
        &self.trunk
    }

    /// What the trunk is.
    pub fn config(&self) -> &Config {
        &self.trunk.config
    }

    /// What an optimiser updates: trunk and score.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.trunk.device()
    }

    /// Logits `[B]` of right-padded ids [B, T] (Int64) whose rows hold lengths `[B]` (Int64) real tokens.
    pub fn logits(&self, ids: &Tensor, lengths: &Tensor) -> Result<Tensor> {
        self.score(&self.trunk.hidden(ids)?, lengths)
    }

    /// Logits `[B]`, in f32 or wider, from final states [B, T, D] of right-padded rows that hold lengths `[B]`
    /// (Int64) real tokens.
    pub fn score(&self, hidden: &Tensor, lengths: &Tensor) -> Result<Tensor> {
        let (rows, width) = match hidden.size().as_slice() {
            &[rows, width, _] => (rows, width),
            size => return Err(Error::input("final states", "a [B, T, D] tensor", format!("{size:?}"))),
        };
        let kind = lengths.f_kind()?;
        if lengths.size() != [rows] || kind != Kind::Int64 {
            let got = format!("{:?} of {kind:?}", lengths.size());
            return Err(Error::input("lengths", format!("[{rows}] of Int64"), got));
        }
        let (least, most) = lengths.f_aminmax(None, false)?;
        for length in [least.f_int64_value(&[])?, most.f_int64_value(&[])?] {
            if length < 1 || length > width {
                return Err(Error::input("length of a row", format!("1 to {width}"), length));
            }
        }
        let last = lengths.f_to(self.device())?.f_sub_scalar(1)?;
        let starts = Tensor::f_arange(rows, (Kind::Int64, self.device()))?.f_mul_scalar(width)?;
        let states = hidden
            .f_reshape([rows * width, -1])?
            .f_index_select(0, &starts.f_add(&last)?)?;
        let score = wide(self.score.shallow_clone())?;
        Ok(linear(&wide(states)?, &score)?.f_squeeze_dim(-1)?)
    }

    fn assemble(config: &Config, params: Params) -> Result<Self> {
        Ok(Self {
            trunk: Trunk::new(config, &params)?,
            score: params.shared(SCORE)?,
            params,
        })
    }
}
