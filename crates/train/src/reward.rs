//! Training a reward model on pairs of completions.

use std::path::Path;

use tch::{Kind, Tensor};
use unsay_data::{EncodedPair, PairBatch};
use unsay_losses::scores::{Feedback, Loss, ScoreCounts, Scores};
use unsay_model::{Params, SequenceClassifier};

use crate::error::{Error, Result};
use crate::examples::Examples;
use crate::learner::Learner;
use crate::objective::{LogicalBatch, Objective, Outcome, Sums, micro_batches};
use crate::pairs::{Pairs, branches};
use crate::settings::Settings;

/// A classifier with one label, a loss over pairs of its scores, and the pairs to train on. A completion is scored at its last
/// token, whatever that is and whatever fills rows up.
///
/// Metrics have the names that others plot: `accuracy` (a tie is no agreement), `margin`, `min_reward`, `mean_reward`,
/// `max_reward`.
#[derive(Debug)]
pub struct RewardObjective {
    learner: Learner<SequenceClassifier>,
    loss: Loss,
    pairs: Pairs,
}

impl RewardObjective {
    /// Checks the loss's ranges and that it learns from pairs, that the classifier has one label, and that every token is in
    /// the model's vocabulary and fits its positions. A prompt is computed once for both completions; see
    /// [`RewardObjective::with_prompts_apart`].
    ///
    /// **Errors**: [`Error::Loss`] for a parameter out of range; [`Error::Data`] otherwise.
    pub fn new(classifier: SequenceClassifier, loss: Loss, examples: Examples<EncodedPair>) -> Result<Self> {
        loss.check()?;
        if loss.feedback() != Feedback::Pairs {
            let (name, feedback) = (loss.name(), loss.feedback());
            return Err(Error::Data(format!("`{name}` learns from {feedback}, got pairs")));
        }
        if classifier.num_labels() != 1 {
            let got = classifier.num_labels();
            return Err(Error::Data(format!(
                "a reward is one number, got a classifier of {got} labels"
            )));
        }
        let config = classifier.config();
        examples.check_fit(config.vocab_size, config.max_position_embeddings)?;
        Ok(Self {
            learner: Learner::new(classifier),
            loss,
            pairs: Pairs::new(examples),
        })
    }

    /// Computes the prompt before each completion anew. Values and gradients are the same but for rounding.
    #[must_use]
    pub fn with_prompts_apart(self) -> Self {
        let pairs = self.pairs.apart();
        Self { pairs, ..self }
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

    /// Adds one micro-batch to the sums and, when training, its gradients to those of the parameters. Gives its scores.
    fn micro(&self, batch: &PairBatch, counts: &ScoreCounts, train: bool, sums: &mut Sums) -> Result<Tensor> {
        let learner = &self.learner;
        let ids = Tensor::f_from_slice(&batch.ids)?;
        let last = Tensor::f_from_slice(&batch.last)?;
        let of = (&ids, &branches(batch)?);
        let pass = learner.pass.branched(learner.trunk(), of, &last, train)?;
        let scores = learner.model.score_states(pass.states())?;
        let n = batch.last.len() as i64 / 2;
        let (chosen, rejected) = (scores.f_narrow(0, 0, n)?, scores.f_narrow(0, n, n)?);
        let answers = Scores::Pairs {
            chosen: &chosen,
            rejected: &rejected,
            margin: None,
        };
        let value = self.loss.evaluate(&answers, counts)?;
        sums.add_loss(&value.total, &value.per_example)?;
        for (name, term) in &value.terms {
            // The scores of both sides are in the mean, the least and the largest reward.
            match *name {
                "score_margin" => sums.add_metric("margin", term)?,
                "score_chosen" | "score_rejected" => {}
                other => sums.add_metric(other, term)?,
            }
        }
        if train {
            value.total.f_backward()?;
            pass.backward()?;
        }
        Ok(scores.f_detach()?)
    }
}

impl Objective for RewardObjective {
    type Sample = EncodedPair;

    fn params(&self) -> &Params {
        self.learner.params()
    }

    fn examples(&self) -> &Examples<EncodedPair> {
        &self.pairs.examples
    }

    fn configure(self, settings: &Settings) -> Result<Self> {
        let learner = self.learner.configured(settings)?;
        Ok(Self { learner, ..self })
    }

    fn describe(&self) -> String {
        let (prompts, pass) = (self.pairs.describe(), self.learner.pass.describe());
        format!("rewards {:?}{prompts}{pass}", self.loss)
    }

    fn run(&self, batch: &LogicalBatch) -> Result<Outcome> {
        let lengths = self.pairs.examples.lengths(&batch.places)?;
        let groups = micro_batches(&lengths, batch.micro_batch);
        let counts = ScoreCounts {
            answers: batch.places.len() as f64,
        };
        let _guard = (!batch.train).then(tch::no_grad_guard);
        let (mut sums, mut scores) = (Sums::default(), Vec::new());
        for group in &groups {
            let piece = self.pairs.batch(group.iter().map(|&position| batch.places[position]))?;
            scores.push(self.micro(&piece, &counts, batch.train, &mut sums)?);
            self.learner.sum_gradients((batch.train, groups.len()))?;
        }
        let all = Tensor::f_cat(&scores, 0)?;
        for (name, value) in [
            ("min_reward", all.f_min()?),
            ("mean_reward", all.f_mean(Kind::Double)?),
            ("max_reward", all.f_max()?),
        ] {
            sums.add_metric(name, &value)?;
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
