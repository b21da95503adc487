//! What a model thinks of completions it is shown.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use unsay_data::{Batch, Encoded, Example, Label, Limits, Tokenizer, encode_all};
use unsay_model::{Decoder, logps};

use crate::error::{Error, Result};
use crate::evaluation::check_ids;

/// Log-probability of one completion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Likelihood {
    /// Id of the example.
    pub example: String,
    /// Its label.
    pub label: Label,
    /// Sum of log p over the completion's tokens, the end token included where it was not cut off; of an unlabelled
    /// conversation over all its answers.
    pub logp: f64,
    /// How many tokens that is, at least 1.
    pub n_tokens: usize,
}

/// Log-probabilities of many completions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Likelihoods {
    /// One per example with a completion, in input order.
    pub rows: Vec<Likelihood>,
    /// Ids of the examples dropped for an empty completion.
    pub dropped: Vec<String>,
}

/// Log-probability of each example's completion given its prompt.
///
/// `logp = sum over t of log p(y_t | x, y_<t)`, at temperature 1, encoded and cut as in training.
///
/// **Parameters** `batch` of at least 1: examples at once, which changes speed and memory and, by
/// the order of floating-point sums, digits beyond the sixth.
///
/// **Errors** no examples, a repeated id, `batch` of 0, a value that is not finite; what encoding
/// or the model runs into. An empty completion is dropped and listed.
///
/// **Reference** the usual definition.
///
/// **Differs from the paper** nothing.
pub fn likelihoods(
    decoder: &Decoder,
    tokenizer: &Tokenizer,
    limits: &Limits,
    examples: &[Example],
    batch: usize,
) -> Result<Likelihoods> {
    if batch == 0 {
        return Err(Error::Range {
            name: "batch",
            expected: "at least 1",
            got: "0".into(),
        });
    }
    check_ids("likelihoods", examples.iter().map(|e| e.id.as_str()))?;
    let (encoded, _) = encode_all(tokenizer, examples, limits)?;
    let mut order: Vec<&Encoded> = encoded.iter().collect();
    order.sort_by_key(|row| (row.ids.len(), row.example));
    let mut found: Vec<Option<(f64, usize)>> = vec![None; examples.len()];
    for rows in order.chunks(batch) {
        for (row, value) in rows.iter().zip(sums(decoder, rows)?) {
            found[row.example] = Some(value);
        }
    }
    let mut out = Likelihoods {
        rows: Vec::with_capacity(encoded.len()),
        dropped: Vec::new(),
    };
    for (example, found) in examples.iter().zip(found) {
        match found {
            Some((logp, n_tokens)) => {
                out.rows.push(Likelihood {
                    example: example.id.clone(),
                    label: example.label,
                    logp,
                    n_tokens,
                });
            }
            None => out.dropped.push(example.id.clone()),
        }
    }
    if !out.rows.is_empty() {
        check("likelihoods", &out.rows)?;
    }
    Ok(out)
}

/// Sum of log-probabilities and number of tokens of each row of one batch.
fn sums(decoder: &Decoder, rows: &[&Encoded]) -> Result<Vec<(f64, usize)>> {
    let batch = Batch::new(rows)?;
    let values = tch::no_grad(|| token_logps(decoder, &batch))?;
    let values: Vec<f64> = values
        .f_to_kind(Kind::Double)
        .and_then(Vec::try_from)
        .map_err(unsay_model::Error::from)?;
    let mut sums = vec![(0.0, 0); rows.len()];
    for (row, value) in batch.rows.example.iter().zip(values) {
        let (sum, n) = &mut sums[*row as usize];
        *sum += value;
        *n += 1;
    }
    Ok(sums)
}

/// Log-probabilities of all completion tokens of a batch.
fn token_logps(decoder: &Decoder, batch: &Batch) -> Result<Tensor, unsay_model::Error> {
    let device = decoder.device();
    let shape = [batch.n_examples as i64, batch.width as i64];
    let ids = Tensor::f_from_slice(&batch.ids)?.f_view(shape)?.f_to(device)?;
    let positions = Tensor::f_from_slice(&batch.rows.position)?.f_to(device)?;
    let targets = Tensor::f_from_slice(&batch.rows.target)?.f_to(device)?;
    let hidden = decoder.hidden(&ids)?;
    let states = hidden.f_flatten(0, 1)?.f_index_select(0, &positions)?;
    logps(decoder, &states, &targets)
}

/// An error for no rows, a repeated id, a row without tokens or with a sum that is not finite.
pub(crate) fn check(evaluator: &'static str, rows: &[Likelihood]) -> Result<()> {
    check_ids(evaluator, rows.iter().map(|r| r.example.as_str()))?;
    for row in rows {
        if !row.logp.is_finite() {
            return Err(Error::NotFinite {
                evaluator,
                example: row.example.clone(),
                got: row.logp,
            });
        }
        if row.n_tokens == 0 {
            return Err(Error::Range {
                name: "n_tokens",
                expected: "at least 1",
                got: "0".into(),
            });
        }
    }
    Ok(())
}
