//! A trained classifier as a judge.

use tch::{Device, Kind, TchError, Tensor};
use unsay_data::{Batch, Encoded, Example, Label, Limits, Tokenizer, encode_all};
use unsay_model::SequenceClassifier;

use crate::error::{Error, Result};
use crate::judge::{Item, Judge, is_blank};

/// A sequence classifier that reads prompt and completion.
///
/// `P(positive) = 1 / (1 + exp(-logit))`, the logit read at the last token of `[bos] prompt [sep]
/// completion [eos]`, encoded and cut exactly as in its training.
///
/// **Parameters** see [`LearnedJudge::new`].
///
/// **Errors** no items; what encoding or the model runs into.
///
/// **On negatives** a blank completion gets 0 without asking the classifier, which has never seen
/// one.
///
/// **Reference** the labelling and evaluation classifiers of Adolphs et al., The CRINGE Loss, 2022,
/// §4.
///
/// **Differs from the paper** it reads the prompt as well; the published safety classifier reads
/// the reply only.
pub struct LearnedJudge {
    name: String,
    classifier: SequenceClassifier,
    tokenizer: Tokenizer,
    limits: Limits,
    batch: usize,
}

impl LearnedJudge {
    /// A judge that names itself `name` in results and reads `batch` items at once (at least 1).
    pub fn new(
        name: impl Into<String>,
        classifier: SequenceClassifier,
        tokenizer: Tokenizer,
        limits: Limits,
        batch: usize,
    ) -> Result<Self> {
        if batch == 0 {
            return Err(Error::Range {
                name: "batch",
                expected: "at least 1",
                got: "0".into(),
            });
        }
        Ok(Self {
            name: name.into(),
            classifier,
            tokenizer,
            limits,
            batch,
        })
    }

    /// Logits of one batch.
    fn logits(&self, rows: &[&Encoded]) -> Result<Vec<f64>> {
        let batch = Batch::new(rows)?;
        let (ids, lengths) = tensors(&batch, self.classifier.device()).map_err(unsay_model::Error::from)?;
        let logits = tch::no_grad(|| self.classifier.logits(&ids, &lengths))?;
        Ok(logits
            .f_to_kind(Kind::Double)
            .and_then(Vec::try_from)
            .map_err(unsay_model::Error::from)?)
    }
}

impl Judge for LearnedJudge {
    fn name(&self) -> &str {
        &self.name
    }

    /// Items are read in order of length, so that little of a batch is padding, and answered in input order.
    fn safe(&self, items: &[Item<'_>]) -> Result<Vec<f64>> {
        if items.is_empty() {
            return Err(Error::Empty {
                judge: self.name.clone(),
            });
        }
        let spoken: Vec<usize> = (0..items.len()).filter(|i| !is_blank(items[*i].completion)).collect();
        let mut values = vec![0.0; items.len()];
        if spoken.is_empty() {
            return Ok(values);
        }
        let examples: Vec<Example> = spoken
            .iter()
            .map(|i| Example {
                id: i.to_string(),
                prompt: items[*i].prompt.to_owned(),
                completion: items[*i].completion.to_owned(),
                label: Label::Unlabelled,
                seen_prompt: false,
                messages: Vec::new(),
            })
            .collect();
        let (encoded, _) = encode_all(&self.tokenizer, &examples, &self.limits)?;
        let mut rows: Vec<&Encoded> = encoded.iter().collect();
        rows.sort_by_key(|row| (row.ids.len(), row.example));
        for rows in rows.chunks(self.batch) {
            for (row, logit) in rows.iter().zip(self.logits(rows)?) {
                values[spoken[row.example]] = 1.0 / (1.0 + (-logit).exp());
            }
        }
        Ok(values)
    }
}

/// Ids [B, T] and lengths [B] of a batch.
fn tensors(batch: &Batch, device: Device) -> Result<(Tensor, Tensor), TchError> {
    let shape = [batch.n_examples as i64, batch.width as i64];
    let ids = Tensor::f_from_slice(&batch.ids)?.f_view(shape)?.f_to(device)?;
    Ok((ids, Tensor::f_from_slice(&batch.lengths)?.f_to(device)?))
}
