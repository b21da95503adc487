//! What a loss returns.

use tch::Tensor;

use crate::{Result, TokenRows};

/// The value of a loss on one micro-batch.
///
/// Everything is already divided by counts of the whole batch, so the values of micro-batches add up.
#[derive(Debug)]
pub struct LossValue {
    /// The scalar to minimise, with its graph.
    pub total: Tensor,
    /// `[B]` what each example adds to `total`; sums to it. Detached.
    pub per_example: Tensor,
    /// Named parts for the log, detached scalars. Each is a mean over the rows it concerns in the whole batch
    /// and adds up over micro-batches; a part that concerns no row of the batch is left out.
    pub terms: Vec<(&'static str, Tensor)>,
}

impl LossValue {
    /// From what each row adds to the total, `[N]`.
    pub(crate) fn from_rows(values: &Tensor, rows: &TokenRows, terms: Vec<(&'static str, Tensor)>) -> Result<Self> {
        let column = values.f_detach()?.f_unsqueeze(1)?;
        // The gradient of an embedding look-up: a sum by index, in one fixed order on every device.
        let sums = Tensor::f_embedding_dense_backward(&column, &rows.example, rows.n_examples, -1, false)?;
        Ok(LossValue {
            total: values.f_sum(None)?,
            per_example: sums.f_squeeze_dim(1)?,
            terms,
        })
    }
}

/// `values` where `mask` is true, else zero. Not a product: `0 · NaN` would still be `NaN`.
pub(crate) fn select(values: &Tensor, mask: &Tensor) -> Result<Tensor> {
    Ok(values.f_where_self(mask, &values.f_zeros_like()?)?)
}

/// A term for the log: the sum of `values` where `mask` is true over `count`; nothing where there are none.
pub(crate) fn term(
    name: &'static str,
    values: &Tensor,
    mask: &Tensor,
    count: f64,
) -> Result<Option<(&'static str, Tensor)>> {
    if count == 0.0 {
        return Ok(None);
    }
    Ok(Some((
        name,
        select(&values.f_detach()?, mask)?.f_sum(None)?.f_div_scalar(count)?,
    )))
}
