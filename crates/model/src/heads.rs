//! Heads beside the output embedding: linear maps of the decoder's states, each in a file of its own next to the model.

use std::path::Path;

use rand::Rng;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::arch::Spec;
use crate::linear::{Layout, Linear, linear};
use crate::{Config, Decoder, Error, Params, Result, file_in, init, shards, weights};

const VALUE_FILE: &str = "value_head.safetensors";
const VALUE: &str = "v_head.summary";
const DIRECTOR_FILE: &str = "director_head.safetensors";
const DIRECTOR: &str = "classifier_heads";

/// One number per state: what a critic expects of it. Its tensors have TRL's names (`v_head.summary.weight` [1, D] and
/// `v_head.summary.bias` `[1]`) in `value_head.safetensors`.
#[derive(Debug)]
pub struct ValueHead {
    map: Linear,
    params: Params,
}

impl ValueHead {
    /// A new head for the states of a decoder. The weight is normal(0, 1/√(D + 1)) from `rng` and the bias zero, so that
    /// values begin near the size of one.
    ///
    /// **Reference**: S. Huang and others, "The N Implementation Details of RLHF with PPO", 2024, detail on the value head.
    pub fn init(decoder: &Decoder, rng: &mut impl Rng) -> Result<Self> {
        let width = decoder.config().hidden_size;
        let (kind, device) = options(decoder)?;
        let weight = init::normal(rng, &[1, width as i64], 1.0 / (width as f64 + 1.0).sqrt(), kind)?;
        let bias = Tensor::f_zeros([1], (kind, device))?;
        Self::assemble(vec![
            (format!("{VALUE}.weight"), weight.f_to(device)?),
            (format!("{VALUE}.bias"), bias),
        ])
    }

    /// Reads the head beside a model.
    pub fn load(dir: &Path, decoder: &Decoder) -> Result<Self> {
        let shapes = [
            Spec::matrix(format!("{VALUE}.weight"), 1, decoder.config().hidden_size),
            Spec::zeros(format!("{VALUE}.bias"), 1),
        ];
        Self::assemble(shards::read_file(dir, VALUE_FILE, shapes.into(), options(decoder)?)?)
    }

    /// Writes the head beside a model; the file is replaced whole or not at all.
    pub fn save(&self, dir: &Path) -> Result<()> {
        save(&dir.join(VALUE_FILE), &self.params)
    }

    /// What an optimiser updates beside the decoder's own tensors.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Values [..] of states [.., D], in f32 or, for an f64 decoder, f64.
    pub fn values(&self, states: &Tensor) -> Result<Tensor> {
        let states = fitting(states, self.map.weight())?;
        Ok(self.map.forward(&states)?.f_squeeze_dim(-1)?)
    }

    fn assemble(entries: Vec<(String, Tensor)>) -> Result<Self> {
        let params = Params::new(entries)?;
        let map = Linear::new(&params, VALUE, Layout::OutIn)?;
        Ok(Self { map, params })
    }
}

/// Where the logits of DIRECTOR's second head come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum DirectorForm {
    /// A weight [V, D] and a bias `[V]` of its own: `u = W h + b`.
    Own {},
    /// The language head's logits on another scale: `u = scale · z + bias`, two numbers.
    Shared {},
}

impl DirectorForm {
    fn tensors(self, config: &Config) -> Vec<Spec> {
        let name = |part: &str| format!("{DIRECTOR}.{part}");
        match self {
            Self::Own {} => vec![
                Spec::matrix(name("weight"), config.vocab_size, config.hidden_size),
                Spec::zeros(name("bias"), config.vocab_size),
            ],
            Self::Shared {} => vec![Spec::zeros(name("params"), 2)],
        }
    }
}

/// DIRECTOR's second head, which judges every next token. Its tensors have the names of the released code (ParlAI):
/// `classifier_heads.weight` and `.bias`, or `classifier_heads.params` `[2]` for scale and bias, in
/// `director_head.safetensors`. The model beside it is a plain model folder for every other tool.
///
/// **Reference**: K. Arora, K. Shuster, S. Sukhbaatar, J. Weston, "DIRECTOR: Generator-classifiers for supervised language
/// modeling", 2022.
#[derive(Debug)]
pub struct DirectorHead {
    map: DirectorMap,
    params: Params,
}

#[derive(Debug)]
enum DirectorMap {
    Own { weight: Tensor, bias: Tensor },
    Shared { scale_and_bias: Tensor },
}

/// What the op under the token losses takes for the second head.
#[derive(Debug)]
pub struct DirectorInputs {
    /// States [N, D], or [N, D + 1] with a column of ones that meets the bias.
    pub hidden: Tensor,
    /// The matrix [V, D] or [V, D + 1] that turns them into logits.
    pub embedding: Tensor,
    /// Scale and bias of the logits, numbers without dimensions, in the shared form.
    pub affine: Option<(Tensor, Tensor)>,
}

impl DirectorHead {
    /// A new head for a decoder. An own weight is normal(0, `initializer_range`) from `rng` and its bias zero, so that
    /// every judgement begins near one half; the released code begins with torch's default for linear maps. A shared
    /// head begins with scale 1 and bias 0, like the released code.
    pub fn init(form: DirectorForm, decoder: &Decoder, rng: &mut impl Rng) -> Result<Self> {
        let (kind, device) = options(decoder)?;
        let make = |spec: Spec| {
            let tensor = match form {
                DirectorForm::Own {} => init::initial(decoder.config(), &spec, rng, kind)?,
                DirectorForm::Shared {} => Tensor::f_from_slice(&[1.0, 0.0])?.f_to_kind(kind)?,
            };
            Ok((spec.name, tensor.f_to(device)?))
        };
        let entries = form.tensors(decoder.config()).into_iter().map(make);
        Self::assemble(form, entries.collect::<Result<_>>()?)
    }

    /// Reads the head beside a model, in the form that was written.
    pub fn load(dir: &Path, decoder: &Decoder) -> Result<Self> {
        let file = weights::Reader::open(&file_in(dir, DIRECTOR_FILE)?)?;
        let form = match file.names().contains(&format!("{DIRECTOR}.params")) {
            true => DirectorForm::Shared {},
            false => DirectorForm::Own {},
        };
        let wanted = form.tensors(decoder.config());
        Self::assemble(form, shards::read_file(dir, DIRECTOR_FILE, wanted, options(decoder)?)?)
    }

    /// Writes the head beside a model; the file is replaced whole or not at all.
    pub fn save(&self, dir: &Path) -> Result<()> {
        save(&dir.join(DIRECTOR_FILE), &self.params)
    }

    /// Where its logits come from.
    pub fn form(&self) -> DirectorForm {
        match self.map {
            DirectorMap::Own { .. } => DirectorForm::Own {},
            DirectorMap::Shared { .. } => DirectorForm::Shared {},
        }
    }

    /// What an optimiser updates beside the decoder's own tensors.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Logits [.., V] of states [.., D]: above 0 the token is judged good.
    pub fn logits(&self, decoder: &Decoder, states: &Tensor) -> Result<Tensor> {
        match &self.map {
            DirectorMap::Own { weight, bias } => Ok(fitting(states, weight)?.f_linear(weight, Some(bias))?),
            DirectorMap::Shared { scale_and_bias } => {
                let embedding = decoder.output_embedding();
                let language =
                    linear(&fitting(states, &embedding)?, &embedding)?.f_to_kind(scale_and_bias.f_kind()?)?;
                let (scale, bias) = pair(scale_and_bias)?;
                Ok(language.f_mul(&scale)?.f_add(&bias)?)
            }
        }
    }

    /// The same as something that the op under the token losses can walk through, given states [N, D]. Gradients reach the
    /// states and the tensors of this head, and in the shared form the output embedding.
    pub fn inputs(&self, decoder: &Decoder, states: &Tensor) -> Result<DirectorInputs> {
        let &[n, _] = states.size().as_slice() else {
            return Err(Error::input("states", "[N, D]", format!("{:?}", states.size())));
        };
        match &self.map {
            DirectorMap::Own { weight, bias } => {
                let states = fitting(states, weight)?;
                let ones = Tensor::f_ones([n, 1], (states.f_kind()?, states.device()))?;
                Ok(DirectorInputs {
                    hidden: Tensor::f_cat(&[&states, &ones], 1)?,
                    embedding: Tensor::f_cat(&[weight, &bias.f_unsqueeze(1)?], 1)?,
                    affine: None,
                })
            }
            DirectorMap::Shared { scale_and_bias } => {
                let embedding = decoder.output_embedding();
                Ok(DirectorInputs {
                    hidden: fitting(states, &embedding)?,
                    embedding,
                    affine: Some(pair(scale_and_bias)?),
                })
            }
        }
    }

    fn assemble(form: DirectorForm, entries: Vec<(String, Tensor)>) -> Result<Self> {
        let params = Params::new(entries)?;
        let part = |part: &str| params.shared(&format!("{DIRECTOR}.{part}"));
        let map = match form {
            DirectorForm::Own {} => DirectorMap::Own {
                weight: part("weight")?,
                bias: part("bias")?,
            },
            DirectorForm::Shared {} => DirectorMap::Shared {
                scale_and_bias: part("params")?,
            },
        };
        Ok(Self { map, params })
    }
}

/// Scale and bias out of the one tensor that holds both.
fn pair(scale_and_bias: &Tensor) -> Result<(Tensor, Tensor)> {
    Ok((scale_and_bias.f_select(0, 0)?, scale_and_bias.f_select(0, 1)?))
}

/// A head is as wide as the decoder's weights, but never below f32, and lies where they lie.
fn options(decoder: &Decoder) -> Result<(Kind, Device)> {
    let kind = match decoder.trunk.kind()? {
        Kind::Double => Kind::Double,
        _ => Kind::Float,
    };
    Ok((kind, decoder.device()))
}

/// States in the kind of the weight that they meet, after a look at their width.
fn fitting(states: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let width = weight.size()[1];
    match states.size().last() {
        Some(&got) if got == width => Ok(states.f_to_kind(weight.f_kind()?)?),
        _ => Err(Error::input(
            "states",
            format!("[.., {width}]"),
            format!("{:?}", states.size()),
        )),
    }
}

fn save(path: &Path, params: &Params) -> Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    }
    weights::write(path, params.iter())
}
