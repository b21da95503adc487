//! Made batches: what any loss of any family could ask about a few units of completions.

use std::cell::RefCell;

use tch::{Device, Kind, Tensor};
use unsay_losses::CompletionRows;

use crate::plain::{Numbers, numbers};

/// One completion: `length` rows of the batch from `start`.
#[derive(Debug, Clone)]
pub struct Completion {
    pub unit: usize,
    /// 1 positive, chosen, desirable, of a high advantage; 0 the opposite; -1 unlabelled.
    pub role: i8,
    pub start: usize,
    pub length: usize,
    pub prompt: Vec<i64>,
}

/// Units of completions with all that belongs to their rows, in `f64`: unit after unit, completion after completion.
#[derive(Debug)]
pub struct Batch {
    pub completions: Vec<Completion>,
    /// The completions of each unit.
    pub units: Vec<Vec<usize>>,
    pub targets: Vec<i64>,
    /// `[N, D]` and `[V, D]`.
    pub states: Tensor,
    pub embedding: Tensor,
    /// `[V, D]` a second head, and the scale and bias of a shared one.
    pub second: Tensor,
    pub scale: f64,
    pub bias: f64,
    /// `[N, D]` and `[V, D]` of a frozen reference.
    pub reference_states: Tensor,
    pub reference_embedding: Tensor,
    /// Per row: log-probability under the reference, under the policy that sampled, and uniform draws.
    pub reference: Vec<f64>,
    pub old: Vec<f64>,
    pub draws: Vec<f64>,
    /// Per completion: a number of the sign of its role, around 1.
    pub advantage: Vec<f64>,
    /// Per row: what a critic said before, and what came of it.
    pub old_values: Vec<f64>,
    pub returns: Vec<f64>,
}

/// Text is made of a few of the tokens, so that some repeat.
const WORDS: usize = 5;

/// Log-ratios of the completions of an extreme batch: far away; just inside of ±40, where exponents are held; and where an
/// exponent that is held later still fits `f32`, but its square does not.
const EXTREMES: [f64; 7] = [-1e4, -59.0, -39.0, 0.0, 39.0, 59.0, 1e4];

/// What the logits of a completion of an extreme batch can look like.
const FORMS: usize = 4;

/// How large a made batch is.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub units: usize,
    /// Every completion has at least one token and at most this many.
    pub longest: usize,
    /// Width of the states.
    pub d: i64,
    /// Tokens in the vocabulary.
    pub v: i64,
}

impl Batch {
    /// Units with the roles that `roles` gives to the unit of a number; lengths, tokens and everything else from the seed.
    pub fn new(seed: u64, size: Size, roles: &dyn Fn(usize) -> Vec<i8>) -> Batch {
        let Size { units, longest, d, v } = size;
        let mut made = Numbers::new(seed);
        let mut batch = Batch::empty(made.tensor(&[v, d], 1.2), made.tensor(&[v, d], 1.2));
        for unit in 0..units {
            let prompt: Vec<i64> = (0..3).map(|_| made.below(WORDS) as i64).collect();
            for role in roles(unit) {
                let length = 1 + made.below(longest);
                batch.add(unit, role, &prompt, length);
                for _ in 0..length {
                    batch.targets.push(made.below(WORDS) as i64);
                    batch.draws.push(made.next());
                }
                batch
                    .advantage
                    .push((0.5 + made.next()) * if role == 0 { -1.0 } else { 1.0 });
            }
        }
        let n = batch.n_rows() as i64;
        batch.states = made.tensor(&[n, d], 1.2);
        batch.reference_states = &batch.states + made.tensor(&[n, d], 0.3);
        batch.reference_embedding = &batch.embedding + made.tensor(&[v, d], 0.1);
        // Near the policy, as after some steps of training.
        let now = batch.logps(&batch.states);
        let mut around =
            |scale: f64| -> Vec<f64> { now.iter().map(|x| x + scale * (2.0 * made.next() - 1.0)).collect() };
        batch.reference = around(0.6);
        batch.old = around(0.5);
        // Of a critic that reads its values off the states, and what came of it: much less, or much more.
        let said = numbers(&batch.states.matmul(&batch.embedding.get(0)));
        batch.old_values = said.iter().map(|x| x + 0.5 * (2.0 * made.next() - 1.0)).collect();
        let signs = batch
            .completions
            .iter()
            .flat_map(|c| vec![if c.role == 0 { -1.0 } else { 1.0 }; c.length]);
        batch.returns = signs.map(|sign| sign * (5.0 + made.next())).collect();
        batch
    }

    /// Every combination, over the completions of a pair, of logits of ±1e4, of a target with probability 1 − 1e-12
    /// or 1e-12, and of log-ratios to reference and sampling policy of 0, ±39, ±59 and ±1e4; the second head likewise.
    pub fn extreme(roles: &dyn Fn(usize) -> Vec<i8>) -> Batch {
        const V: i64 = 7;
        let margins = [1e4, -1e4, 0.0, 0.0, 1e4, 3.0, 9.9e3];
        let mut batch = Batch::empty(scaled_identity(V), scaled_identity(V));
        let mut states: Vec<f64> = Vec::new();
        let mut shifts = Vec::new();
        // Units of different roles differ in their number of completions, too.
        let kinds = FORMS * EXTREMES.len();
        for (unit, number) in (0..1008usize).enumerate() {
            let mut digits = number;
            for (place, role) in roles(unit).into_iter().enumerate() {
                let length = 1 + (number + place) % 2;
                batch.add(unit, role, &[0, 1, 2], length);
                let (form, shift) = (digits % FORMS, EXTREMES[digits / FORMS % EXTREMES.len()]);
                digits /= kinds;
                for row in 0..length {
                    let target = (number / kinds + 3 * place + 5 * row) % V as usize;
                    let sure = (1e12 * (V - 1) as f64).ln();
                    for (token, margin) in margins.into_iter().enumerate() {
                        let on_target = if token == target { 1.0 } else { 0.0 };
                        states.push(match form {
                            0 => margin,
                            1 => -margin,
                            2 => sure * on_target,
                            _ => -sure * on_target,
                        });
                    }
                    batch.targets.push(target as i64);
                    batch.draws.push([0.0, 0.5, 0.999_999][number % 3]);
                    shifts.push(shift / length as f64);
                }
                batch.advantage.push(if role == 0 { -1.0 } else { 1.0 });
            }
        }
        batch.states = Tensor::from_slice(&states).view([-1, V]) / SHARE;
        batch.reference_states = batch.states.flip([0]);
        batch.reference_embedding = scaled_identity(V);
        let now = batch.logps(&batch.states);
        batch.reference = now.iter().zip(&shifts).map(|(now, shift)| now - shift).collect();
        batch.old = batch.reference.clone();
        batch.old_values = shifts.iter().rev().copied().collect();
        batch.returns = shifts;
        batch
    }

    fn empty(embedding: Tensor, second: Tensor) -> Batch {
        Batch {
            completions: Vec::new(),
            units: Vec::new(),
            targets: Vec::new(),
            states: Tensor::new(),
            embedding,
            second,
            scale: 0.7,
            bias: -0.3,
            reference_states: Tensor::new(),
            reference_embedding: Tensor::new(),
            reference: Vec::new(),
            old: Vec::new(),
            draws: Vec::new(),
            advantage: Vec::new(),
            old_values: Vec::new(),
            returns: Vec::new(),
        }
    }

    fn add(&mut self, unit: usize, role: i8, prompt: &[i64], length: usize) {
        self.units.resize(unit + 1, Vec::new());
        self.units[unit].push(self.completions.len());
        self.completions.push(Completion {
            unit,
            role,
            start: self.targets.len(),
            length,
            prompt: prompt.to_vec(),
        });
    }

    pub fn n_rows(&self) -> usize {
        self.targets.len()
    }

    /// `[N]` log-probabilities of the targets.
    pub fn logps(&self, states: &Tensor) -> Vec<f64> {
        let logps = states.matmul(&self.embedding.tr()).log_softmax(-1, None);
        numbers(&logps.gather(1, &Tensor::from_slice(&self.targets).unsqueeze(1), false))
    }

    /// The sum of one number per row over each completion.
    pub fn sums(&self, per_row: &[f64]) -> Vec<f64> {
        let of = |c: &Completion| per_row[c.start..c.start + c.length].iter().sum();
        self.completions.iter().map(of).collect()
    }
}

/// What the embedding of an extreme batch has of the size of its logits: states and embedding are of one size, and so are
/// their gradients.
const SHARE: f64 = 100.0;

/// An embedding that makes logits of states that are so much smaller.
fn scaled_identity(n: i64) -> Tensor {
    Tensor::eye(n, (Kind::Double, Device::Cpu)) * SHARE
}

/// Some units of a batch, in some order: one micro-batch.
#[derive(Debug)]
pub struct Part<'a> {
    pub batch: &'a Batch,
    /// The units of the batch that are here.
    pub units: Vec<usize>,
    /// The completions of the batch that are here, in the order of the family's rows.
    pub completions: Vec<usize>,
    /// The row of the batch that each row here is.
    pub rows: Vec<i64>,
    /// What was handed out beside stats: all of it constants to a loss, though it collects gradients here.
    pub constants: RefCell<Vec<Tensor>>,
}

impl<'a> Part<'a> {
    pub fn new(batch: &'a Batch, units: &[usize], order: impl Fn(&Batch, &[usize]) -> Vec<usize>) -> Part<'a> {
        let completions = order(batch, units);
        let rows = completions.iter().map(|&c| &batch.completions[c]);
        Part {
            rows: rows
                .flat_map(|c| (c.start..c.start + c.length).map(|r| r as i64))
                .collect(),
            units: units.to_vec(),
            completions,
            batch,
            constants: RefCell::default(),
        }
    }

    pub fn members(&self) -> impl Iterator<Item = &'a Completion> {
        self.completions.iter().map(|&c| &self.batch.completions[c])
    }

    pub fn lengths(&self) -> Vec<usize> {
        self.members().map(|c| c.length).collect()
    }

    pub fn completion_rows(&self) -> CompletionRows {
        CompletionRows::new(&self.lengths(), Device::Cpu).unwrap()
    }

    /// `[N]` the part's rows of one number per row of the batch.
    pub fn per_row(&self, numbers: &[f64]) -> Tensor {
        self.constant(self.rows.iter().map(|&r| numbers[r as usize]))
    }

    /// `[C]` the part's completions of one number per completion of the batch.
    pub fn per_completion(&self, numbers: &[f64]) -> Tensor {
        self.constant(self.completions.iter().map(|&c| numbers[c]))
    }

    /// `[N]` the same, for every row of each completion.
    pub fn spread(&self, numbers: &[f64]) -> Tensor {
        let of = |&c: &usize| vec![numbers[c]; self.batch.completions[c].length];
        self.constant(self.completions.iter().flat_map(of))
    }

    /// Numbers that a loss is given and must not train.
    pub fn constant(&self, numbers: impl Iterator<Item = f64>) -> Tensor {
        let numbers = Tensor::from_slice(&numbers.collect::<Vec<f64>>()).set_requires_grad(true);
        self.constants.borrow_mut().push(numbers.shallow_clone());
        numbers
    }

    pub fn targets(&self) -> Vec<i64> {
        self.rows.iter().map(|&r| self.batch.targets[r as usize]).collect()
    }

    /// The place among the part's units of each completion.
    pub fn place(&self, unit: usize) -> usize {
        self.units.iter().position(|&u| u == unit).unwrap()
    }
}
