//! Keys and values of the tokens so far.

use tch::{Kind, Tensor};

use crate::Result;
use crate::trunk::Trunk;

/// One pair of buffers [R, G, S, d] per block, made once for the longest sequence the batch can reach.
#[derive(Debug)]
pub(crate) struct Cache {
    layers: Vec<(Tensor, Tensor)>,
    used: i64,
}

impl Cache {
    pub(crate) fn new(trunk: &Trunk, rows: i64, slots: i64) -> Result<Self> {
        let shape = [
            rows,
            trunk.config.num_key_value_heads as i64,
            slots,
            trunk.config.head_dim as i64,
        ];
        let options: (Kind, _) = (trunk.kind()?, trunk.device());
        let buffer = || Tensor::f_empty(shape, options);
        let layers = (0..trunk.n_blocks())
            .map(|_| Ok((buffer()?, buffer()?)))
            .collect::<Result<_>>()?;
        Ok(Self { layers, used: 0 })
    }

    /// Stores new keys and values [R, T, G, d] of a block behind those that are there, and returns all of
    /// them as [R, G, S, d]. The count moves with [`Cache::advance`], once all blocks have written.
    pub(crate) fn extend(&self, layer: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let (keys, values) = &self.layers[layer];
        let n = k.size()[1];
        let store = |buffer: &Tensor, new: &Tensor| -> Result<Tensor> {
            buffer.f_narrow(2, self.used, n)?.f_copy_(&new.f_transpose(1, 2)?)?;
            Ok(buffer.f_narrow(2, 0, self.used + n)?)
        };
        Ok((store(keys, k)?, store(values, v)?))
    }

    pub(crate) fn advance(&mut self, n: i64) {
        self.used += n;
    }

    pub(crate) fn used(&self) -> i64 {
        self.used
    }

    /// Keeps the given rows.
    pub(crate) fn keep(&mut self, rows: &Tensor) -> Result<()> {
        for (keys, values) in &mut self.layers {
            *keys = keys.f_index_select(0, rows)?;
            *values = values.f_index_select(0, rows)?;
        }
        Ok(())
    }
}
