//! Training a classifier of completions with binary cross-entropy.

use std::path::Path;

use tch::{Device, Kind, Tensor};
use unsay_data::{Batch, Encoded, Label};
use unsay_losses::scores::pointwise;
use unsay_model::{Params, SequenceClassifier};

use crate::error::{Error, Result};
use crate::examples::{Examples, Place};
use crate::learner::Learner;
use crate::objective::{LogicalBatch, Objective, Outcome, Sums, micro_batches};
use crate::prefix_states::PrefixStates;
use crate::settings::Settings;

/// A classifier and the labelled examples to train on: the mean over the batch of the cross-entropy of its logit,
/// where positive examples have target 1.
#[derive(Debug)]
pub struct ClassifierObjective {
    learner: Learner<SequenceClassifier>,
    examples: Examples,
    device: Device,
}

impl ClassifierObjective {
    /// Refuses unlabelled examples, a set with only one class to learn from, and examples that the model cannot read.
    pub fn new(classifier: SequenceClassifier, examples: Examples) -> Result<Self> {
        let config = classifier.config();
        examples.check_fit(config.vocab_size, config.max_position_embeddings)?;
        let all = || examples.train_iter().chain(examples.valid_iter());
        if all().any(|encoded| encoded.label == Label::Unlabelled) {
            return Err(Error::Data(
                "a classifier needs labelled examples, got an unlabelled one".into(),
            ));
        }
        for (label, name) in [(Label::Positive, "positive"), (Label::Negative, "negative")] {
            if !examples.train_iter().any(|encoded| encoded.label == label) {
                return Err(Error::Data(format!(
                    "a classifier needs examples of both classes, got none that is {name}"
                )));
            }
        }
        let device = classifier.device();
        Ok(Self {
            learner: Learner::new(classifier),
            examples,
            device,
        })
    }

    /// Takes the states below what is trained from files that hold them; see
    /// [`LanguageObjective::with_prefix_states`](crate::LanguageObjective::with_prefix_states).
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

    /// The classifier as it is now.
    pub fn classifier(&self) -> &SequenceClassifier {
        &self.learner.model
    }

    /// Gives the classifier back.
    pub fn into_classifier(self) -> SequenceClassifier {
        self.learner.model
    }

    fn micro(&self, places: &[Place], batch: &Batch, whole: &Whole, train: bool, sums: &mut Sums) -> Result<()> {
        let ends = batch.lengths.iter().enumerate();
        let ends: Vec<i64> = ends
            .map(|(row, length)| (row * batch.width) as i64 + length - 1)
            .collect();
        let pass = self
            .learner
            .pass
            .forward(self.learner.trunk(), (batch, places), &ends, train)?;
        let logits = self.learner.model.score_states(pass.states())?;
        let labels: Vec<f32> = batch.labels.iter().map(|&label| f32::from(label)).collect();
        let target = Tensor::f_from_slice(&labels)?
            .f_to_device(self.device)?
            .f_to_kind(logits.f_kind()?)?;
        let per_example = pointwise(&logits, &target)?.f_div_scalar(whole.examples)?;
        let total = per_example.f_sum(None)?;
        sums.add_loss(&total, &per_example)?;
        sums.add_term("bce_loss", &total)?;
        let positive = target.f_gt(0.5)?;
        let correct = logits.f_gt(0.0)?.f_eq_tensor(&positive)?;
        let share =
            |of: &Tensor, n: f64| Ok::<_, Error>(correct.f_logical_and(of)?.f_sum(Kind::Double)?.f_div_scalar(n)?);
        sums.add_metric("accuracy", &share(&correct, whole.examples)?)?;
        for (name, of, n) in [
            ("accuracy_pos", &positive, whole.positive),
            ("accuracy_neg", &positive.f_logical_not()?, whole.negative()),
        ] {
            if n > 0.0 {
                sums.add_metric(name, &share(of, n)?)?;
            }
        }
        if train {
            total.f_backward()?;
            pass.backward()?;
        }
        Ok(())
    }
}

/// Counts over the whole logical batch.
struct Whole {
    examples: f64,
    positive: f64,
}

impl Whole {
    fn negative(&self) -> f64 {
        self.examples - self.positive
    }
}

impl Objective for ClassifierObjective {
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
        format!("classifier pointwise{}", self.learner.pass.describe())
    }

    fn run(&self, batch: &LogicalBatch) -> Result<Outcome> {
        let lengths = self.examples.lengths(&batch.places)?;
        let groups = micro_batches(&lengths, batch.micro_batch);
        let encoded = batch
            .places
            .iter()
            .map(|&place| self.examples.get(place))
            .collect::<Result<Vec<_>>>()?;
        let positive = encoded
            .iter()
            .filter(|encoded| encoded.label == Label::Positive)
            .count();
        let whole = Whole {
            examples: encoded.len() as f64,
            positive: positive as f64,
        };
        let mut sums = Sums::default();
        for group in &groups {
            let picked: Vec<_> = group.iter().map(|&position| encoded[position]).collect();
            let places: Vec<_> = group.iter().map(|&position| batch.places[position]).collect();
            let _guard = (!batch.train).then(tch::no_grad_guard);
            self.micro(&places, &Batch::new(&picked)?, &whole, batch.train, &mut sums)?;
            self.learner.sum_gradients((batch.train, groups.len()))?;
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
