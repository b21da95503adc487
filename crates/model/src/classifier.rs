//! One or several scores per sequence.

use std::path::Path;

use rand::Rng;
use serde_json::{Map, Value};
use tch::{Device, Kind, Tensor};

use crate::arch::Spec;
use crate::decoder::{CONFIG, save, wanted};
use crate::hf::{self, ModelClass};
use crate::linear::linear;
use crate::logps::wide;
use crate::shards;
use crate::trunk::Trunk;
use crate::{Config, Decoder, Error, Params, Precision, Result, Rounding, Trained, init};

pub(crate) const SCORE: &str = "score.weight";

/// Fields of `config.json` that say how many labels there are, and what they are called.
const NUM_LABELS: &str = "num_labels";
const NAMES: [&str; 2] = ["id2label", "label2id"];

/// No honest classifier has more.
const MOST_LABELS: usize = 1 << 16;

/// A decoder trunk and a linear score of its state at the last real token, stored like Hugging Face's
/// `LlamaForSequenceClassification` and its relatives. With one label (K = 1) a logit above 0 means positive, or the logit is
/// a reward; with more there is a logit per label.
#[derive(Debug)]
pub struct SequenceClassifier {
    pub(crate) trunk: Trunk,
    score: Tensor,
    pub(crate) params: Params,
}

impl SequenceClassifier {
    /// A classifier with one label on the weights of a decoder, whose own output embedding is dropped if it is not tied.
    /// The score is normal(0, `initializer_range`) from `rng`.
    pub fn from_trunk(decoder: Decoder, rng: &mut impl Rng) -> Result<Self> {
        Self::with_labels(decoder, 1, rng)
    }

    /// The same with `num_labels` labels, 1 to 65536. Names of labels that the decoder's description may hold belong to
    /// another head and are dropped.
    pub fn with_labels(decoder: Decoder, num_labels: usize, rng: &mut impl Rng) -> Result<Self> {
        if !(1..=MOST_LABELS).contains(&num_labels) {
            return Err(Error::input("`num_labels`", format!("1 to {MOST_LABELS}"), num_labels));
        }
        let mut config = decoder.config().clone();
        for name in NAMES {
            config.other.shift_remove(name);
        }
        let whole = |name: &str| Ok::<_, Error>(decoder.params.known(name)?.f_detach()?);
        let kind = whole(config.architecture.form().embedding())?.f_kind()?;
        let score = init::normal(
            rng,
            &[num_labels as i64, config.hidden_size as i64],
            config.initializer_range,
            kind,
        )?;
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
        let mut config = hf::read(dir, ModelClass::SequenceClassification)?;
        let num_labels = count_labels(&config.other).map_err(|what| Error::Config {
            place: format!("`{}`", dir.join(CONFIG).display()),
            what,
        })?;
        // The score says it; what the trunk computes does not depend on it.
        config.other.shift_remove(NUM_LABELS);
        let mut wanted = wanted(&config);
        wanted.tensors.push(Spec::matrix(SCORE, num_labels, config.hidden_size));
        let entries = shards::read(dir, &wanted, None, device)?;
        Self::assemble(&config, Params::new(entries)?)
    }

    /// Writes a Hugging Face folder; each file is replaced whole or not at all. Hugging Face finds the
    /// last real token by `pad_token_id`, so that must be set.
    pub fn save(&self, dir: &Path) -> Result<()> {
        if self.config().pad_token_id.is_none() {
            return Err(Error::input("`pad_token_id` of a classifier", "a token id", "none"));
        }
        let mut config = self.config().clone();
        config.other.insert(NUM_LABELS.to_owned(), self.num_labels().into());
        save(dir, &config, &self.params, ModelClass::SequenceClassification, None)
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

    /// The same classifier, of which a part is trained; its score always is. See [`Decoder::with_trained`].
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
    /// **Errors**: those of [`SequenceClassifier::load`], and [`Error::Input`] when names or shapes differ.
    pub fn read_weights(&mut self, dir: &Path) -> Result<()> {
        let read = Self::load(dir, self.device())?;
        self.params.assign(read.params.iter())
    }

    /// Embedding, blocks and final norm.
    pub fn trunk(&self) -> &Trunk {
        &self.trunk
    }

    /// The same model, rounding in these places as transformers does; see [`Decoder::rounding_like_transformers`].
    #[must_use]
    pub fn rounding_like_transformers(mut self, places: Rounding) -> Self {
        self.trunk.round(places);
        self
    }

    /// What the trunk is.
    pub fn config(&self) -> &Config {
        &self.trunk.config
    }

    /// How many labels (K) there are. Their names, where known, are `id2label` in the description's other fields.
    pub fn num_labels(&self) -> usize {
        self.score.size().first().map_or(0, |&k| k as usize)
    }

    /// What an optimiser updates: trunk and score.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.trunk.device()
    }

    /// Logits `[B]` (K = 1) or [B, K] of right-padded ids [B, T] (Int64) whose rows hold lengths `[B]` (Int64) real tokens.
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
        self.scored(&hidden.f_reshape([rows * width, -1])?, &starts.f_add(&last)?)
    }

    /// Logits `[B]`, or [B, K], in f32 or wider, from final states [N, D] of tokens in any order, at the tokens `last` `[B]`
    /// (Int64) that end the sequences.
    ///
    /// **Errors**: [`Error::Input`] for tokens that are not there.
    pub fn score_at(&self, states: &Tensor, last: &Tensor) -> Result<Tensor> {
        let &[n, _] = states.size().as_slice() else {
            return Err(Error::input("final states", "[N, D]", format!("{:?}", states.size())));
        };
        let (size, kind) = (last.size(), last.f_kind()?);
        if size.len() != 1 || size == [0] || kind != Kind::Int64 {
            let got = format!("{size:?} of {kind:?}");
            return Err(Error::input("last tokens", "at least one, [B] of Int64", got));
        }
        let (least, most) = last.f_aminmax(None, false)?;
        for token in [least.f_int64_value(&[])?, most.f_int64_value(&[])?] {
            if token < 0 || token >= n {
                return Err(Error::input("last token", format!("0 to {}", n - 1), token));
            }
        }
        self.scored(states, &last.f_to(self.device())?)
    }

    fn scored(&self, states: &Tensor, last: &Tensor) -> Result<Tensor> {
        let states = states.f_index_select(0, last)?;
        let logits = linear(&wide(states)?, &wide(self.score.shallow_clone())?)?;
        match self.num_labels() {
            1 => Ok(logits.f_squeeze_dim(-1)?),
            _ => Ok(logits),
        }
    }

    fn assemble(config: &Config, params: Params) -> Result<Self> {
        Ok(Self {
            trunk: Trunk::new(config, &params)?,
            score: params.shared(SCORE)?,
            params,
        })
    }
}

/// As transformers counts: the names of the labels, or else their number, or else two.
fn count_labels(fields: &Map<String, Value>) -> Result<usize, String> {
    let named = match fields.get(NAMES[0]) {
        None | Some(Value::Null) => None,
        Some(Value::Object(names)) => Some(names.len()),
        Some(got) => return Err(format!("`{}`: expected an object, got {got}", NAMES[0])),
    };
    let stated = match fields.get(NUM_LABELS) {
        None | Some(Value::Null) => None,
        Some(got) => {
            let number = got.as_u64().and_then(|n| usize::try_from(n).ok());
            Some(number.ok_or_else(|| format!("`{NUM_LABELS}`: expected a whole number, got {got}"))?)
        }
    };
    match (named, stated) {
        (Some(a), Some(b)) if a != b => Err(format!("`{NUM_LABELS}` is {b} and `{}` names {a}", NAMES[0])),
        _ => match named.or(stated).unwrap_or(2) {
            count if (1..=MOST_LABELS).contains(&count) => Ok(count),
            count => Err(format!("`{NUM_LABELS}`: expected 1 to {MOST_LABELS}, got {count}")),
        },
    }
}
