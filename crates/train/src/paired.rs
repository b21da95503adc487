//! Training a decoder with a loss over pairs of completions.

use std::cell::RefCell;
use std::path::Path;

use tch::Tensor;
use unsay_data::{EncodedPair, PairBatch};
use unsay_losses::paired::{self, PairCounts};
use unsay_losses::{Baseline, CompletionRows, RunningMean, TokenOp, TokenStats};
use unsay_model::{Decoder, Params, files};

use crate::error::{Error, Result};
use crate::examples::{Examples, Place};
use crate::learner::Learner;
use crate::objective::{LogicalBatch, Objective, Outcome, Sums, micro_batches};
use crate::pairs::{Pairs, branches};
use crate::pass::Forward;
use crate::reference::{self, Predicting, Reference};
use crate::settings::Settings;

/// Where a checkpoint keeps the mean of all rewards so far.
const RUNNING_MEAN: &str = "running_mean.json";

/// A decoder, a loss over pairs, what it compares with, and the pairs to train on.
///
/// A micro-batch is so many pairs. Metrics have the names that others plot: `rewards/chosen`, `rewards/rejected`,
/// `rewards/margins`, `rewards/accuracies`, `logps/chosen`, `logps/rejected`; and
/// `logps/chosen_below_reference` is the share of pairs whose chosen completion has become less likely than it is under the
/// reference: a margin that grows while this does is bought by pushing both sides down.
#[derive(Debug)]
pub struct PairedObjective {
    learner: Learner<Decoder>,
    loss: paired::Objective,
    pairs: Pairs,
    reference: Reference,
    /// Of the reference as it was given.
    compared_with: String,
    rewards: RefCell<RunningMean>,
}

/// One micro-batch on the host.
struct Piece {
    /// Its pairs' positions in the logical batch.
    group: Vec<usize>,
    places: Vec<Place>,
    batch: PairBatch,
    rows: CompletionRows,
}

/// What the model says of a micro-batch.
struct Said<'a> {
    pass: Forward<'a>,
    op: TokenOp,
    stats: TokenStats,
    reference: Option<Tensor>,
    draws: Option<Tensor>,
}

impl Said<'_> {
    fn batch<'b>(&'b self, rows: &'b CompletionRows, baseline: Option<f64>) -> paired::Batch<'b> {
        paired::Batch {
            stats: &self.stats,
            rows,
            reference: self.reference.as_ref(),
            draws: self.draws.as_ref(),
            baseline,
        }
    }
}

impl PairedObjective {
    /// Checks the loss's ranges, that the reference is one where the loss compares with one, and that every token is in the
    /// model's vocabulary and fits its positions. A prompt is computed once for both completions; see
    /// [`PairedObjective::with_prompts_apart`].
    ///
    /// **Errors**: [`Error::Loss`] for a parameter out of range or a part that does not go with the loss; [`Error::Data`]
    /// otherwise.
    pub fn new(
        decoder: Decoder,
        loss: paired::Objective,
        examples: Examples<EncodedPair>,
        reference: Reference,
    ) -> Result<Self> {
        if let Some(problem) = loss.problems().into_iter().next() {
            return Err(problem.into());
        }
        let name = loss.loss.name();
        match (&reference, loss.uses_reference()) {
            (Reference::None, true) => {
                return Err(Error::Data(format!(
                    "`{name}` compares with a reference, got none\nhint: give its log-probabilities, a second model, or \
                     train an adapter and compare with the model below it"
                )));
            }
            (Reference::None, false) | (_, true) => {}
            (_, false) => return Err(Error::Data(format!("`{name}` compares with no reference, got one"))),
        }
        if matches!(reference, Reference::AdapterOff) && decoder.adapter().is_none() {
            return Err(Error::Data(
                "a reference without the adapter, got a model that has none".into(),
            ));
        }
        if loss.loss.baseline() == Some(Baseline::MismatchedKl) {
            let what = "completions of other prompts, which pairs do not have";
            return Err(Error::Data(format!("`{name}` subtracts a divergence from {what}")));
        }
        let config = decoder.config();
        examples.check_fit(config.vocab_size, config.max_position_embeddings)?;
        if let Reference::Model(model) = &reference {
            let config = model.config();
            examples.check_fit(config.vocab_size, config.max_position_embeddings)?;
        }
        reference.check_examples(&examples)?;
        Ok(Self {
            compared_with: reference.describe()?,
            learner: Learner::new(decoder),
            loss,
            pairs: Pairs::new(examples),
            reference,
            rewards: RefCell::default(),
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

    /// The decoder as it is now.
    pub fn decoder(&self) -> &Decoder {
        &self.learner.model
    }

    /// Gives the decoder back.
    pub fn into_decoder(self) -> Decoder {
        self.learner.model
    }

    fn piece(&self, batch: &LogicalBatch, group: &[usize]) -> Result<Piece> {
        let places: Vec<Place> = group.iter().map(|&position| batch.places[position]).collect();
        let batch = self.pairs.batch(places.iter().copied())?;
        Ok(Piece {
            group: group.to_vec(),
            places,
            rows: CompletionRows::new(&batch.lengths, self.learner.device())?,
            batch,
        })
    }

    fn say(&self, piece: &Piece, draws: &DrawTable, train: bool) -> Result<Said<'_>> {
        let learner = &self.learner;
        // The model checks the ids before they leave the host.
        let ids = Tensor::f_from_slice(&piece.batch.ids)?;
        let predicting = Predicting::of(&piece.batch)?;
        let pass = learner.pass.branched(
            learner.trunk(),
            (&ids, &branches(&piece.batch)?),
            &predicting.tokens,
            train,
        )?;
        let own = (&learner.model, learner.model.output_embedding());
        let op = predicting
            .op(pass.states(), own, &piece.batch, &self.loss.needs())?
            .with_gradient_in_place();
        let stats = op.forward()?;
        let reference = match &self.reference {
            Reference::None => None,
            Reference::Logps(files) => Some(reference::read(files, &piece.places)?.f_to_device(learner.device())?),
            Reference::Model(decoder) => {
                Some(reference::logps_of(decoder, &piece.batch)?.f_to_device(learner.device())?)
            }
            Reference::AdapterOff => Some(reference::off(&learner.model, |decoder| {
                reference::logps_of(decoder, &piece.batch)
            })?),
        };
        let sides = [0, 1].map(|side| piece.group.iter().map(move |&position| (position, side)));
        let draws = draws.of(sides.into_iter().flatten())?;
        Ok(Said {
            pass,
            op,
            stats,
            reference,
            draws: draws.map(|draws| draws.f_to_device(learner.device())).transpose()?,
        })
    }

    /// The number that the loss subtracts from rewards; a training step first takes in those of its whole batch. What was
    /// said of the only micro-batch there is need not be said again.
    fn baseline<'a>(
        &'a self,
        pieces: &[Piece],
        draws: &DrawTable,
        train: bool,
    ) -> Result<(Option<f64>, Option<Said<'a>>)> {
        if self.loss.loss.baseline().is_none() {
            return Ok((None, None));
        }
        let mut said = None;
        if train {
            let only = pieces.len() == 1;
            let mut rewards = vec![[0.0; 2]; pieces.iter().map(|piece| piece.group.len()).sum()];
            for piece in pieces {
                let _guard = (!only).then(tch::no_grad_guard);
                let own = self.say(piece, draws, only)?;
                let pairs = self.loss.pairs(&own.batch(&piece.rows, None))?;
                let (chosen, rejected) = self.loss.loss.rewards(&pairs)?;
                for (side, values) in [chosen, rejected].into_iter().enumerate() {
                    for (position, value) in piece.group.iter().zip(host(&values)?) {
                        rewards[*position][side] = value;
                    }
                }
                said = only.then_some(own);
            }
            self.rewards.borrow_mut().update(rewards.as_flattened())?;
        }
        Ok((Some(self.rewards.borrow().mean()), said))
    }

    /// Adds what was said of some pairs to the sums.
    fn add(&self, said: &Said<'_>, rows: &CompletionRows, whole: &Whole, sums: &mut Sums) -> Result<Tensor> {
        let value = self.loss.evaluate(&said.batch(rows, whole.baseline), &whole.counts)?;
        sums.add_loss(&value.total, &value.per_example)?;
        for (name, term) in &value.terms {
            sums.add_term(logged(name), term)?;
        }
        if let Some(reference) = &said.reference {
            let n = rows.n_completions() as i64 / 2;
            let chosen = |logp: &Tensor| rows.sums(&logp.f_detach()?)?.f_narrow(0, 0, n).map_err(Error::from);
            let below = chosen(&said.stats.logp)?.f_lt_tensor(&chosen(reference)?)?;
            let share = below.f_sum(tch::Kind::Double)?.f_div_scalar(whole.counts.pairs)?;
            sums.add_metric("logps/chosen_below_reference", &share)?;
        }
        Ok(value.total)
    }

    /// Values of a loss that compares all pairs of a batch with each other, from micro-batches without gradients.
    fn all_at_once(&self, pieces: &[Piece], draws: &DrawTable, whole: &Whole, sums: &mut Sums) -> Result<()> {
        let said = pieces.iter().map(|piece| self.say(piece, draws, false));
        let said = said.collect::<Result<Vec<_>>>()?;
        let device = self.learner.device();
        let (mut stats, mut references, mut drawn, mut lengths) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for side in [0, 1] {
            for (piece, said) in pieces.iter().zip(&said) {
                let of_pieces = &piece.batch.lengths;
                let (before, own) = of_pieces.split_at(side * piece.group.len());
                let own = &own[..piece.group.len()];
                let range = [before, own].map(|lengths| lengths.iter().sum::<usize>() as i64);
                stats.push(said.stats.rows(range[0], range[1])?);
                let part = |all: &Tensor| all.f_narrow(0, range[0], range[1]);
                references.extend(said.reference.as_ref().map(part).transpose()?);
                drawn.extend(said.draws.as_ref().map(part).transpose()?);
                lengths.extend_from_slice(own);
            }
        }
        let joined = |parts: &[Tensor]| match parts.is_empty() {
            true => Ok::<_, Error>(None),
            false => Ok(Some(Tensor::f_cat(parts, 0)?)),
        };
        let rows = CompletionRows::new(&lengths, device)?;
        let Some(last) = said.into_iter().next_back() else {
            return Err(Error::Data("a batch without pairs".into()));
        };
        let all = Said {
            stats: TokenStats::join(&stats)?,
            reference: joined(&references)?,
            draws: joined(&drawn)?,
            ..last
        };
        self.add(&all, &rows, whole, sums).map(drop)
    }
}

/// What a micro-batch must know of the whole batch.
struct Whole {
    counts: PairCounts,
    baseline: Option<f64>,
}

/// The random draws of a logical batch: those of each pair follow those of the pair before it, however the batch is split.
struct DrawTable {
    per_row: usize,
    all: Vec<f32>,
    /// Where those of each completion begin and end: of each pair the chosen one's, then the rejected one's.
    starts: Vec<usize>,
}

impl DrawTable {
    fn new(per_row: usize, batch: &LogicalBatch, pieces: &[Piece]) -> Self {
        let mut n_rows = vec![0; 2 * batch.places.len()];
        for piece in pieces {
            for (completion, n) in piece.batch.lengths.iter().enumerate() {
                let (side, row) = (completion / piece.group.len(), completion % piece.group.len());
                n_rows[2 * piece.group[row] + side] = *n;
            }
        }
        let mut starts = vec![0];
        let mut end = 0;
        for n in n_rows {
            end += n * per_row;
            starts.push(end);
        }
        Self {
            per_row,
            all: batch.draws.uniform(end),
            starts,
        }
    }

    /// The draws `[N, per_row]` of the rows of completions, each a position in the batch and a side.
    fn of(&self, completions: impl Iterator<Item = (usize, usize)>) -> Result<Option<Tensor>> {
        if self.per_row == 0 {
            return Ok(None);
        }
        let range = |(position, side): (usize, usize)| {
            let at = 2 * position + side;
            self.starts[at]..self.starts[at + 1]
        };
        let own: Vec<f32> = completions
            .flat_map(|completion| &self.all[range(completion)])
            .copied()
            .collect();
        Ok(Some(Tensor::f_from_slice(&own)?.f_view([-1, self.per_row as i64])?))
    }
}

/// The names that others plot.
fn logged(name: &'static str) -> &'static str {
    match name {
        "reward_chosen" => "rewards/chosen",
        "reward_rejected" => "rewards/rejected",
        "reward_margin" => "rewards/margins",
        "reward_accuracy" => "rewards/accuracies",
        "logp_chosen" => "logps/chosen",
        "logp_rejected" => "logps/rejected",
        other => other,
    }
}

fn host(values: &Tensor) -> Result<Vec<f64>> {
    let values = values.f_to_kind(tch::Kind::Double)?.f_to(tch::Device::Cpu)?;
    Ok(Vec::try_from(values)?)
}

impl Objective for PairedObjective {
    type Sample = EncodedPair;

    fn params(&self) -> &Params {
        self.learner.params()
    }

    fn examples(&self) -> &Examples<EncodedPair> {
        &self.pairs.examples
    }

    fn configure(self, settings: &Settings) -> Result<Self> {
        let (micro, batch) = (settings.micro_batch(), settings.batch);
        if self.loss.loss.couples_pairs() && micro < batch {
            return Err(Error::Data(format!(
                "`{}` compares the pairs of a batch with each other, so its batches cannot be split: expected a micro-batch of \
                 {batch}, got {micro}",
                self.loss.loss.name()
            )));
        }
        let learner = self.learner.configured(settings)?;
        let reference = match self.reference {
            Reference::Model(model) => Reference::Model(Box::new(model.with_precision(settings.precision)?)),
            other => other,
        };
        if let Reference::Logps(files) = &reference {
            files.iter().try_for_each(|file| file.check_kind(learner.trunk()))?;
        }
        Ok(Self {
            learner,
            reference,
            ..self
        })
    }

    fn describe(&self) -> String {
        format!(
            "pairs {:?} against {}{}{}",
            self.loss,
            self.compared_with,
            self.pairs.describe(),
            self.learner.pass.describe()
        )
    }

    fn run(&self, batch: &LogicalBatch) -> Result<Outcome> {
        let lengths = self.pairs.examples.lengths(&batch.places)?;
        let groups = micro_batches(&lengths, batch.micro_batch);
        let pieces = groups.iter().map(|group| self.piece(batch, group));
        let pieces = pieces.collect::<Result<Vec<_>>>()?;
        let draws = DrawTable::new(self.loss.loss.draws_per_row(), batch, &pieces);
        let _guard = (!batch.train).then(tch::no_grad_guard);
        let (baseline, mut said) = self.baseline(&pieces, &draws, batch.train)?;
        let whole = Whole {
            counts: pieces.iter().map(|piece| PairCounts::of(&piece.rows)).sum(),
            baseline,
        };
        let mut sums = Sums::default();
        if self.loss.loss.couples_pairs() && !batch.train {
            self.all_at_once(&pieces, &draws, &whole, &mut sums)?;
        } else {
            for piece in &pieces {
                let said = match said.take() {
                    Some(said) => said,
                    None => self.say(piece, &draws, batch.train)?,
                };
                let total = self.add(&said, &piece.rows, &whole, &mut sums)?;
                if batch.train {
                    total.f_backward()?;
                    said.op.backward(&said.stats)?;
                    said.pass.backward()?;
                }
                self.learner.sum_gradients((batch.train, pieces.len()))?;
            }
        }
        sums.finish(&groups, vec![("num_tokens", lengths.iter().sum::<usize>() as f64)])
    }

    fn save(&self, folder: &Path) -> Result<()> {
        self.learner.save(folder)?;
        if self.loss.loss.baseline().is_none() {
            return Ok(());
        }
        let path = folder.join(RUNNING_MEAN);
        let text = serde_json::to_vec(&*self.rewards.borrow()).map_err(|e| Error::io(&path)(e.into()))?;
        Ok(files::write_atomic(&path, |out| out.write_all(&text))?)
    }

    fn restore(&mut self, folder: &Path) -> Result<()> {
        self.learner.restore(folder)?;
        if self.loss.loss.baseline().is_none() {
            return Ok(());
        }
        let path = folder.join(RUNNING_MEAN);
        let text = std::fs::read(&path).map_err(Error::io(&path))?;
        let mean = serde_json::from_slice(&text).map_err(|e| Error::checkpoint(&path, e.to_string()))?;
        self.rewards.replace(mean);
        Ok(())
    }
}
