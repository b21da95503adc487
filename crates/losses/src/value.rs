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
    /// The sum of parts, each times its weight.
    pub(crate) fn from_parts(parts: &[(f64, Part)], rows: &TokenRows) -> Result<Self> {
        let mut terms = Vec::new();
        let mut weighted = Vec::new();
        for (weight, part) in parts {
            weighted.push(part.values.f_mul_scalar(*weight)?);
            if !part.empty {
                terms.push((part.name, part.values.f_detach()?.f_sum(None)?));
            }
        }
        let values = Tensor::f_stack(&weighted, 0)?.f_sum_dim_intlist([0i64].as_slice(), false, None)?;
        LossValue::from_rows(&values, rows, terms)
    }

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

/// One part of a loss: a mean over some rows of the whole batch.
pub(crate) struct Part {
    name: &'static str,
    /// `[N]` what each row adds to the mean.
    values: Tensor,
    empty: bool,
}

impl Part {
    /// The sum of `values` over the rows where `mask` is true, over `count`; zero where `count` is.
    pub(crate) fn mean(name: &'static str, values: &Tensor, mask: &Tensor, count: f64) -> Result<Self> {
        let empty = count == 0.0;
        Ok(Part {
            name,
            // Without rows the sum is zero: any denominator leaves it there.
            values: select(values, mask)?.f_div_scalar(if empty { 1.0 } else { count })?,
            empty,
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
