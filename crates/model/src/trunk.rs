//! Embedding, blocks and final norm: what decoder and classifier share.

use rand::Rng;
use tch::{Device, Kind, Tensor};

use crate::attention::{Sight, attend, left_padding_mask};
use crate::layer::{Layer, rms_norm};
use crate::linear::LinearShape;
use crate::rope::{Rope, Rotation};
use crate::{Config, Error, Params, Result, init};

/// Handles on the trunk's weights, and the tables of its positions.
#[derive(Debug)]
pub(crate) struct Trunk {
    pub(crate) config: Config,
    pub(crate) embedding: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    pub(crate) rope: Rope,
}

/// Name and shape of every tensor of a trunk, in the model's order.
pub(crate) fn expected(config: &Config) -> Vec<(String, Vec<i64>)> {
    let dim = |n: usize| n as i64;
    let (d, ff) = (dim(config.hidden_size), dim(config.intermediate_size));
    let q = dim(config.num_attention_heads * config.head_dim);
    let kv = dim(config.num_key_value_heads * config.head_dim);
    let mut list = vec![("model.embed_tokens.weight".to_owned(), vec![dim(config.vocab_size), d])];
    for i in 0..config.num_hidden_layers {
        let mut add = |name: &str, shape: Vec<i64>| list.push((format!("model.layers.{i}.{name}.weight"), shape));
        add("input_layernorm", vec![d]);
        add("self_attn.q_proj", vec![q, d]);
        add("self_attn.k_proj", vec![kv, d]);
        add("self_attn.v_proj", vec![kv, d]);
        add("self_attn.o_proj", vec![d, q]);
        add("post_attention_layernorm", vec![d]);
        add("mlp.gate_proj", vec![ff, d]);
        add("mlp.up_proj", vec![ff, d]);
        add("mlp.down_proj", vec![d, ff]);
    }
    list.push(("model.norm.weight".to_owned(), vec![d]));
    list
}

/// Every linear map of the blocks.
pub(crate) fn linear_shapes(config: &Config) -> Vec<LinearShape> {
    let linear = |(name, shape): (String, Vec<i64>)| {
        let module = name.strip_suffix(".weight")?.to_owned();
        let layer = module.split('.').find_map(|part| part.parse().ok())?;
        let &[n_out, n_in] = shape.as_slice() else { return None };
        Some(LinearShape { module, layer, n_in, n_out, in_first: false })
    };
    expected(config).into_iter().filter_map(linear).collect()
}

/// Initial values of one tensor: norms at 1, projections that write into the residual stream narrower by
/// 1/√(2L), everything else normal with the config's spread.
pub(crate) fn initial(config: &Config, name: &str, shape: &[i64], rng: &mut impl Rng, kind: Kind) -> Result<Tensor> {
    if shape.len() == 1 {
        return Ok(Tensor::f_ones(shape, (kind, Device::Cpu))?);
    }
    let into_residual = name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
    let narrower = if into_residual {
        (2.0 * config.num_hidden_layers as f64).sqrt()
    } else {
        1.0
    };
    init::normal(rng, shape, config.initializer_range / narrower, kind)
}

impl Trunk {
    pub(crate) fn new(config: &Config, params: &Params) -> Result<Self> {
        let embedding = params.shared("model.embed_tokens.weight")?;
        let layers = (0..config.num_hidden_layers)
            .map(|i| Layer::new(config, params, i))
            .collect::<Result<_>>()?;
        let rope = Rope::new(config, embedding.f_kind()?, embedding.device());
        Ok(Self {
            config: config.clone(),
            embedding,
            layers,
            norm: params.shared("model.norm.weight")?,
            rope,
        })
    }

    pub(crate) fn kind(&self) -> Result<Kind> {
        Ok(self.embedding.f_kind()?)
    }

    pub(crate) fn device(&self) -> Device {
        self.embedding.device()
    }

    pub(crate) fn n_layers(&self) -> usize {
        self.layers.len()
    }

    /// Right-padded ids [B, T] → final states [B, T, D].
    pub(crate) fn hidden(&self, ids: &Tensor) -> Result<Tensor> {
        let (ids, _, width) = self.checked(ids)?;
        let rotation = self.rope.first(width)?;
        let x = self.run(&ids, &rotation, |_, q, k, v| attend(q, k, v, &Sight::Causal))?;
        self.finish(&x)
    }

    /// Ids [B, T] with real [B, T] true where a token is real → final states [B, T, D]; positions count
    /// real tokens only, and states at padding mean nothing.
    pub(crate) fn hidden_with_mask(&self, ids: &Tensor, real: &Tensor) -> Result<Tensor> {
        let (ids, rows, width) = self.checked(ids)?;
        let kind = real.f_kind()?;
        if real.size() != [rows as i64, width as i64] || kind != Kind::Bool {
            let got = format!("{:?} of {kind:?}", real.size());
            return Err(Error::input(
                "mask of real tokens",
                format!("[{rows}, {width}] of Bool"),
                got,
            ));
        }
        let real = real.f_to(self.device())?;
        let positions = positions(&real)?;
        let sight = Sight::Masked(left_padding_mask(&real, self.kind()?)?);
        let rotation = self.rope.at(&positions, width)?;
        let x = self.run(&ids, &rotation, |_, q, k, v| attend(q, k, v, &sight))?;
        self.finish(&x)
    }

    /// All blocks; `attend` is handed the block's number.
    pub(crate) fn run(
        &self,
        ids: &Tensor,
        rotation: &Rotation,
        mut attend: impl FnMut(usize, &Tensor, &Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let mut x = Tensor::f_embedding(&self.embedding, ids, -1, false, false)?;
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, rotation, |q, k, v| attend(i, q, k, v))?;
        }
        Ok(x)
    }

    /// The final norm.
    pub(crate) fn finish(&self, x: &Tensor) -> Result<Tensor> {
        rms_norm(x, &self.norm, self.config.rms_norm_eps)
    }

    /// Ids on this device, their rows and width; refuses what the embedding or the positions cannot hold.
    fn checked(&self, ids: &Tensor) -> Result<(Tensor, usize, usize)> {
        let size = ids.size();
        let kind = ids.f_kind()?;
        let &[rows, width] = size.as_slice() else {
            return Err(Error::input("token ids", "a [B, T] tensor", format!("{size:?}")));
        };
        if rows == 0 || width == 0 || kind != Kind::Int64 {
            return Err(Error::input(
                "token ids",
                "a non-empty [B, T] of Int64",
                format!("{size:?} of {kind:?}"),
            ));
        }
        let longest = self.config.max_position_embeddings;
        if width as usize > longest {
            return Err(Error::input("sequence length", format!("at most {longest}"), width));
        }
        let (least, most) = ids.f_aminmax(None, false)?;
        for id in [least.f_int64_value(&[])?, most.f_int64_value(&[])?] {
            if id < 0 || id >= self.config.vocab_size as i64 {
                return Err(Error::input(
                    "token id",
                    format!("0 to {}", self.config.vocab_size - 1),
                    id,
                ));
            }
        }
        Ok((ids.f_to(self.device())?, rows as usize, width as usize))
    }
}

/// How many real tokens stand before each; 0 at padding on the left.
pub(crate) fn positions(real: &Tensor) -> Result<Tensor> {
    Ok(real.f_cumsum(-1, Kind::Int64)?.f_sub_scalar(1)?.f_clamp_min(0)?)
}
