//! What a training loop asks of an objective: run one logical batch, in as many pieces as memory wants.

use std::path::Path;

use rand::Rng;
use tch::{Kind, Tensor};
use unsay_model::Params;

use crate::error::{Error, Result};
use crate::examples::{Examples, Place, Sample};
use crate::settings::Settings;

/// An objective with the model it trains and the examples it sees.
///
/// An implementation adds up micro-batches so that loss, terms, per-example values and gradients do not depend
/// on how the logical batch was split: every denominator is a count over the whole batch, and random draws
/// belong to a position in the batch.
pub trait Objective {
    /// What one of its examples is.
    type Sample: Sample;

    /// The trained parameters.
    fn params(&self) -> &Params;

    /// The examples to train and to validate on.
    fn examples(&self) -> &Examples<Self::Sample>;

    /// Takes over what the settings say of the model: the kind it computes in, and whether activations are kept. The
    /// loop calls it once, before anything else.
    fn configure(self, settings: &Settings) -> Result<Self>
    where
        Self: Sized;

    /// Whatever defines the objective beside its examples, in words that differ when it differs; part of the
    /// settings hash of a checkpoint.
    fn describe(&self) -> String;

    /// Runs one logical batch, and adds its gradients to those of the parameters when training.
    fn run(&self, batch: &LogicalBatch) -> Result<Outcome>;

    /// Writes the model into an existing folder.
    fn save(&self, folder: &Path) -> Result<()>;

    /// Replaces the model's weights by saved ones. What is trained, and the kind it computes in, stay.
    fn restore(&mut self, folder: &Path) -> Result<()>;
}

/// Examples whose losses are reduced together.
#[derive(Debug, Clone)]
pub struct LogicalBatch {
    /// The examples, in the order that random draws and per-example values follow.
    pub places: Vec<Place>,
    /// At most so many go through the model at once.
    pub micro_batch: usize,
    /// Where random draws come from.
    pub draws: Draws,
    /// Whether gradients are wanted.
    pub train: bool,
}

/// The stream of random draws of one logical batch.
#[derive(Debug, Clone, Copy)]
pub struct Draws {
    /// The run's seed.
    pub seed: u64,
    /// The stream's name.
    pub purpose: &'static str,
    /// The position in the stream: the update, counted from 0.
    pub position: u64,
}

impl Draws {
    /// `n` uniform numbers in `[0, 1)`. Single precision, so that no later conversion rounds one up to 1.
    pub fn uniform(&self, n: usize) -> Vec<f32> {
        let mut rng = unsay_data::stream(self.seed, self.purpose, self.position);
        (0..n).map(|_| rng.random::<f32>()).collect()
    }
}

/// What came out of one logical batch. The tensors are detached and on the model's device: the caller decides
/// when to read them.
#[derive(Debug)]
pub struct Outcome {
    /// The loss.
    pub loss: Tensor,
    /// The parts the loss is made of, as they enter it before weighting.
    pub terms: Vec<(&'static str, Tensor)>,
    /// Measures that are not part of the loss.
    pub metrics: Vec<(&'static str, Tensor)>,
    /// Measures known without the device.
    pub counts: Vec<(&'static str, f64)>,
    /// Every example's share of the loss, in the order of the batch's places.
    pub per_example: Tensor,
}

/// Splits positions `0..lengths.len()` into groups of at most `micro_batch` with little padding: longest
/// together with longest. Equal lengths keep their order.
pub fn micro_batches(lengths: &[usize], micro_batch: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&position| lengths[position]);
    order.chunks(micro_batch.max(1)).map(<[usize]>::to_vec).collect()
}

/// Adds up the values of micro-batches in double precision, without reading them.
#[derive(Debug, Default)]
pub(crate) struct Sums {
    loss: Option<Tensor>,
    terms: Vec<(&'static str, Tensor)>,
    metrics: Vec<(&'static str, Tensor)>,
    per_example: Vec<Tensor>,
}

impl Sums {
    /// One micro-batch's part of the loss and of every example's share of it.
    pub(crate) fn add_loss(&mut self, total: &Tensor, per_example: &Tensor) -> Result<()> {
        let total = plain(total)?;
        self.loss = Some(match &self.loss {
            Some(sum) => sum.f_add(&total)?,
            None => total,
        });
        self.per_example.push(plain(per_example)?);
        Ok(())
    }

    /// One micro-batch's part of a term.
    pub(crate) fn add_term(&mut self, name: &'static str, value: &Tensor) -> Result<()> {
        add(&mut self.terms, name, value)
    }

    /// One micro-batch's part of a metric.
    pub(crate) fn add_metric(&mut self, name: &'static str, value: &Tensor) -> Result<()> {
        add(&mut self.metrics, name, value)
    }

    /// A summed metric, to derive another from.
    pub(crate) fn metric(&self, name: &str) -> Option<&Tensor> {
        self.metrics
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, sum)| sum)
    }

    /// The outcome, with the examples of the micro-batches `groups` back in the order of the logical batch.
    pub(crate) fn finish(self, groups: &[Vec<usize>], counts: Vec<(&'static str, f64)>) -> Result<Outcome> {
        let loss = self
            .loss
            .ok_or_else(|| Error::Data("a batch without examples".into()))?;
        let per_example = in_batch_order(&self.per_example, groups)?;
        Ok(Outcome {
            loss,
            terms: self.terms,
            metrics: self.metrics,
            counts,
            per_example,
        })
    }
}

fn plain(value: &Tensor) -> Result<Tensor> {
    Ok(value.f_detach()?.f_to_kind(Kind::Double)?)
}

fn add(sums: &mut Vec<(&'static str, Tensor)>, name: &'static str, value: &Tensor) -> Result<()> {
    let value = plain(value)?;
    match sums.iter_mut().find(|(known, _)| *known == name) {
        Some((_, sum)) => *sum = sum.f_add(&value)?,
        None => sums.push((name, value)),
    }
    Ok(())
}

/// Puts the per-example values of micro-batches back into the order of the logical batch.
fn in_batch_order(parts: &[Tensor], groups: &[Vec<usize>]) -> Result<Tensor> {
    let joined = Tensor::f_cat(parts, 0)?;
    let mut inverse = vec![0_i64; joined.size()[0] as usize];
    for (rank, &position) in groups.iter().flatten().enumerate() {
        inverse[position] = rank as i64;
    }
    Ok(joined.f_index_select(0, &Tensor::f_from_slice(&inverse)?.f_to_device(joined.device())?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn micro_batches_group_by_length_and_keep_every_position_once() {
        let groups = micro_batches(&[5, 2, 9, 2, 7], 2);
        assert_eq!(groups, [vec![1, 3], vec![0, 4], vec![2]]);
        assert_eq!(micro_batches(&[1, 1], 10), [vec![0, 1]]);
    }

    #[test]
    fn per_example_values_return_to_their_positions() {
        let groups = [vec![1, 3], vec![0, 2]];
        let parts = [Tensor::from_slice(&[10.0, 30.0]), Tensor::from_slice(&[0.0, 20.0])];
        let ordered = Vec::<f64>::try_from(in_batch_order(&parts, &groups).unwrap()).unwrap();
        assert!(
            ordered
                .iter()
                .zip([0.0, 10.0, 20.0, 30.0])
                .all(|(a, b)| (a - b).abs() < 1e-12)
        );
    }

    #[test]
    fn sums_add_up_by_name() {
        let mut sums = Sums::default();
        for value in [1.0, 2.0] {
            let value = Tensor::from(value);
            sums.add_loss(&value, &value.view(1)).unwrap();
            sums.add_term("ce_loss", &value).unwrap();
            sums.add_metric("logp_pos", &value).unwrap();
        }
        assert!((sums.metric("logp_pos").unwrap().double_value(&[]) - 3.0).abs() < 1e-12);
        let outcome = sums.finish(&[vec![1], vec![0]], Vec::new()).unwrap();
        assert_eq!(outcome.terms.len(), 1);
        assert!((outcome.loss.double_value(&[]) - 3.0).abs() < 1e-12);
        assert!((outcome.per_example.double_value(&[0]) - 2.0).abs() < 1e-12);
        assert!(Sums::default().finish(&[], Vec::new()).is_err());
    }

    #[test]
    fn draws_are_those_of_the_position_and_below_one() {
        let draws = Draws {
            seed: 3,
            purpose: "loss-draws",
            position: 7,
        };
        let all = draws.uniform(1000);
        assert_eq!(all[..10], draws.uniform(10)[..]);
        assert!(all.iter().all(|&u| (0.0..1.0).contains(&u)));
        assert_ne!(all, Draws { position: 8, ..draws }.uniform(1000));
    }
}
