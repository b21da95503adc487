//! Training a decoder with a token loss on labelled completions.

use std::path::Path;

use tch::{Device, Tensor};
use unsay_data::{Batch, Encoded};
use unsay_losses::token::Loss;
use unsay_losses::{TokenCounts, TokenOp, TokenRows, token_metrics};
use unsay_model::{Decoder, Params};

use crate::error::{Error, Result};
use crate::examples::{Examples, Place};
use crate::learner::Learner;
use crate::objective::{LogicalBatch, Objective, Outcome, Sums, micro_batches};
use crate::prefix_states::PrefixStates;
use crate::settings::Settings;

/// A decoder, a token loss, and the examples to train on.
#[derive(Debug)]
pub struct LanguageObjective {
    learner: Learner<Decoder>,
    loss: Loss,
    examples: Examples,
    device: Device,
}

/// One micro-batch on the host.
struct Piece {
    places: Vec<Place>,
    batch: Batch,
    counts: TokenCounts,
    /// The first of each row's draws in the table of the logical batch.
    draws: Vec<usize>,
}

impl LanguageObjective {
    /// Checks the loss's ranges and that every token is in the model's vocabulary and fits its positions.
    pub fn new(decoder: Decoder, loss: Loss, examples: Examples) -> Result<Self> {
        if let Some(problem) = loss.problems().into_iter().next() {
            return Err(problem.into());
        }
        let config = decoder.config();
        examples.check_fit(config.vocab_size, config.max_position_embeddings)?;
        let device = decoder.device();
        check_learnable(&loss, "training", examples.train_iter())?;
        check_learnable(&loss, "validation", examples.valid_iter())?;
        Ok(Self {
            learner: Learner::new(decoder),
            loss,
            examples,
            device,
        })
    }

    /// Takes the states below what is trained from files that hold them, one for each source of the examples and last
    /// the one of the validation set; see [`PrefixStates`]. Gradients are the same but for rounding.
    ///
    /// **Errors**: [`Error::Stored`] naming the file that was made of other examples.
    pub fn with_prefix_states(self, states: Vec<PrefixStates>) -> Result<Self> {
        let learner = self.learner.with_prefix_states(states, &self.examples)?;
        Ok(Self { learner, ..self })
    }

    /// Names the model that an adapter belongs on, for the folders that adapters are stored in.
    #[must_use]
    pub fn with_base_name(self, base_name: impl Into<String>) -> Self {
        let learner = self.learner.with_base_name(base_name);
        Self { learner, ..self }
    }

    /// The decoder as it is now.
    pub fn decoder(&self) -> &Decoder {
        &self.learner.model
    }

    /// Gives the decoder back.
    pub fn into_decoder(self) -> Decoder {
        self.learner.model
    }

    fn pieces(&self, batch: &LogicalBatch, groups: &[Vec<usize>]) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        let mut rows_of = vec![0; batch.places.len()];
        for group in groups {
            let places: Vec<Place> = group.iter().map(|&position| batch.places[position]).collect();
            let encoded = self.encoded(&places)?;
            let batch = Batch::new(&encoded)?;
            let counts = weighted_counts(&self.loss, &batch, &encoded);
            batch
                .rows
                .example
                .iter()
                .for_each(|&example| rows_of[group[example as usize]] += 1);
            pieces.push(Piece {
                places,
                batch,
                counts,
                draws: Vec::new(),
            });
        }
        // Every example's rows follow those of the examples before it in the logical batch, however it is split.
        let per_row = self.loss.draws_per_row();
        let mut next = vec![0; rows_of.len()];
        let mut total = 0;
        for (first, n_rows) in next.iter_mut().zip(&rows_of) {
            *first = total;
            total += n_rows * per_row;
        }
        for (piece, group) in pieces.iter_mut().zip(groups) {
            for &example in &piece.batch.rows.example {
                let next = &mut next[group[example as usize]];
                piece.draws.push(*next);
                *next += per_row;
            }
        }
        Ok(pieces)
    }

    fn encoded(&self, places: &[Place]) -> Result<Vec<&Encoded>> {
        places.iter().map(|&place| self.examples.get(place)).collect()
    }

    /// Adds one micro-batch to the sums and, when training, its gradients to those of the parameters.
    fn micro(&self, piece: &Piece, counts: &TokenCounts, draws: &[f32], train: bool, sums: &mut Sums) -> Result<()> {
        let batch = &piece.batch;
        let to_device = |values: &[i64]| Ok::<_, Error>(Tensor::f_from_slice(values)?.f_to_device(self.device)?);
        let pass = self.learner.pass.forward(
            self.learner.trunk(),
            (batch, &piece.places),
            &batch.rows.position,
            train,
        )?;
        let embedding = self.learner.model.output_embedding();
        let op = TokenOp::new(
            pass.states(),
            &embedding,
            &to_device(&batch.rows.target)?,
            &self.loss.needs(),
        )?
        .with_gradient_in_place()
        .with_onednn(self.learner.model.products().rows());
        let rows = TokenRows::new(&batch.rows.example, &batch.rows.is_eos, &batch.labels, self.device)?;
        // Made here and not for the whole batch: candidates may take the square of the length.
        let encoded = self.encoded(&piece.places)?;
        let marks = encoded
            .iter()
            .flat_map(|encoded| of_text(encoded, |prompt, text| self.loss.marks(prompt, text)));
        let rows = rows.with_marks(&marks.collect::<Vec<_>>())?;
        let op = match &rows.candidates {
            Some(ids) => op.with_candidates(ids)?,
            None => op,
        };
        let op = match self.loss.top_rows(&rows)? {
            Some(wanted) => op.with_top_rows(&wanted)?,
            None => op,
        };
        let fused = op.fused_loss(&*self.loss, &rows, counts, self.draws_of(piece, draws)?.as_ref())?;
        sums.add_loss(&fused.value.total, &fused.value.per_example)?;
        for (name, term) in &fused.value.terms {
            sums.add_term(name, term)?;
        }
        for (name, metric) in token_metrics(&fused.stats, &rows, counts)? {
            sums.add_metric(short(name), &metric)?;
        }
        if train {
            fused.backward()?;
            pass.backward()?;
        }
        Ok(())
    }

    /// The draws of a micro-batch's rows, `[N, draws_per_row]`.
    fn draws_of(&self, piece: &Piece, draws: &[f32]) -> Result<Option<Tensor>> {
        let per_row = self.loss.draws_per_row();
        if per_row == 0 {
            return Ok(None);
        }
        let own: Vec<f32> = piece
            .draws
            .iter()
            .flat_map(|&first| &draws[first..first + per_row])
            .copied()
            .collect();
        Ok(Some(
            Tensor::f_from_slice(&own)?
                .f_to_device(self.device)?
                .f_view([-1, per_row as i64])?,
        ))
    }
}

/// A loss that no example trains would only fail at the first batch.
fn check_learnable<'a>(loss: &Loss, what: &str, examples: impl Iterator<Item = &'a Encoded>) -> Result<()> {
    let mut counts = TokenCounts::default();
    for encoded in examples {
        counts += counts_of(&Batch::new(&[encoded])?);
    }
    if loss.rows_trained(&counts) > 0.0 {
        return Ok(());
    }
    let (
        name,
        TokenCounts {
            positive,
            negative,
            unlabelled,
            ..
        },
    ) = (loss.name(), counts);
    Err(Error::Data(format!(
        "`{name}` learns nothing from the {what} examples: they have {positive} positive, {negative} negative and \
         {unlabelled} unlabelled tokens"
    )))
}

/// What is read from the completions of an example, each with all that comes before it, in the order of their rows. That
/// there are some is for the batch to check.
fn of_text<T>(encoded: &Encoded, mut read: impl FnMut(&[i64], &[i64]) -> Option<T>) -> Vec<T> {
    let wide = |ids: &[u32]| ids.iter().map(|&id| i64::from(id)).collect::<Vec<_>>();
    let parts = encoded.completions();
    parts
        .filter_map(|(prompt, completion)| read(&wide(prompt), &wide(completion)))
        .collect()
}

/// The rows of a micro-batch by label.
fn counts_of(batch: &Batch) -> TokenCounts {
    let kinds = batch.rows.example.iter().zip(&batch.rows.is_eos);
    TokenCounts::count(kinds.map(|(&example, &is_eos)| (batch.labels[example as usize], is_eos)))
}

/// The rows of a micro-batch by label, with the weights that the loss reads from the text.
fn weighted_counts(loss: &Loss, batch: &Batch, encoded: &[&Encoded]) -> TokenCounts {
    let labelled = encoded.iter().zip(&batch.labels);
    let weights = labelled.flat_map(|(encoded, &label)| {
        let weights = of_text(encoded, |prompt, text| loss.weights(prompt, text));
        weights.into_iter().flatten().map(move |weight| (label, weight))
    });
    counts_of(batch).with_weights(weights)
}

/// The names of the logs, where every side is `pos` or `neg`.
fn short(name: &'static str) -> &'static str {
    match name {
        "token_acc_positive" => "token_acc_pos",
        "token_acc_negative" => "token_acc_neg",
        "logp_positive" => "logp_pos",
        "logp_negative" => "logp_neg",
        other => other,
    }
}

impl Objective for LanguageObjective {
    type Sample = Encoded;

    fn params(&self) -> &Params {
        self.learner.params()
    }

    fn examples(&self) -> &Examples {
        &self.examples
    }

    fn configure(self, settings: &Settings) -> Result<Self> {
        let learner = self.learner.configured(settings)?;
        Ok(Self { learner, ..self })
    }

    fn describe(&self) -> String {
        format!("language {:?}{}", self.loss, self.learner.pass.describe())
    }

    fn run(&self, batch: &LogicalBatch) -> Result<Outcome> {
        let lengths = self.examples.lengths(&batch.places)?;
        let groups = micro_batches(&lengths, batch.micro_batch);
        let pieces = self.pieces(batch, &groups)?;
        let counts: TokenCounts = pieces.iter().map(|piece| piece.counts).sum();
        let draws = batch.draws.uniform(counts.total() as usize * self.loss.draws_per_row());
        let mut sums = Sums::default();
        for piece in &pieces {
            let _guard = (!batch.train).then(tch::no_grad_guard);
            self.micro(piece, &counts, &draws, batch.train, &mut sums)?;
            self.learner.sum_gradients((batch.train, pieces.len()))?;
        }
        if let Some(logp) = sums.metric("logp_pos") {
            let ppl = logp.f_neg()?.f_exp()?;
            sums.add_metric("ppl_pos", &ppl)?;
        }
        sums.finish(&groups, vec![("num_tokens", lengths.iter().sum::<usize>() as f64)])
    }

    fn save(&self, folder: &Path) -> Result<()> {
        self.learner.save(folder)
    }

    fn restore(&mut self, folder: &Path) -> Result<()> {
        self.learner.restore(folder)
    }
}

#[cfg(test)]
mod tests {
    use unsay_data::{Label, Span};

    use super::*;

    /// The counts of a batch need no candidates, and are those of the rows that a micro-batch makes of all marks.
    #[test]
    fn counts_of_a_batch_have_the_weights_of_its_rows() {
        let encoded = |ids: &[u32], spans: &[(usize, usize)], label| Encoded {
            ids: ids.to_vec(),
            spans: spans
                .iter()
                .map(|&(start, end)| Span {
                    start,
                    end,
                    ended: false,
                })
                .collect(),
            label,
            example: 0,
        };
        let examples = [
            encoded(&[5, 6, 7, 7, 8, 9], &[(1, 6)], Label::Positive),
            encoded(&[5, 6, 6, 6], &[(2, 4)], Label::Negative),
            encoded(&[5, 7, 8, 7, 8], &[(2, 5)], Label::Unlabelled),
            encoded(&[5, 6, 7, 6, 7, 6, 8, 6, 7], &[(1, 3), (4, 6), (7, 9)], Label::Positive),
            encoded(&[5, 6, 6, 6, 9, 6, 6], &[(1, 3), (5, 7)], Label::Negative),
        ];
        let examples: Vec<&Encoded> = examples.iter().collect();
        let batch = Batch::new(&examples).unwrap();
        let mut weighted = 0;
        for loss in Loss::samples() {
            let marks = examples
                .iter()
                .flat_map(|encoded| of_text(encoded, |prompt, text| loss.marks(prompt, text)));
            let rows = TokenRows::new(&batch.rows.example, &batch.rows.is_eos, &batch.labels, Device::Cpu);
            let rows = rows
                .and_then(|rows| rows.with_marks(&marks.collect::<Vec<_>>()))
                .unwrap();
            let counts = weighted_counts(&loss, &batch, &examples);
            assert_eq!(counts, TokenCounts::of(&rows).unwrap(), "{loss:?}");
            weighted += usize::from(counts != counts_of(&batch));
        }
        assert!(weighted >= 4, "{weighted} samples have weights");
    }
}
