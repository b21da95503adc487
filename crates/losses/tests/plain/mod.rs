//! The plain way, for comparison: full logits, autograd, every row at once; and made batches to compare on.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "a module of tests and benches, each of which uses its part"
)]

use tch::{Device, Kind, Tensor};
use unsay_losses::token::{Loss, Marks};
use unsay_losses::{Kl, LossValue, Needs, TokenCounts, TokenOp, TokenRows, TokenStats};

/// What some stats are about, beside the logits and the targets.
#[derive(Default)]
pub struct Given<'a> {
    /// `[N, C]`, -1 for none.
    pub candidates: Option<&'a Tensor>,
    /// `[N, V]` logits of the reference.
    pub reference: Option<&'a Tensor>,
}

/// Stats of full logits `[N, V]`, left in the autograd graph, as far as they need nothing else.
pub fn stats(logits: &Tensor, targets: &Tensor, needs: &Needs) -> TokenStats {
    stats_of(logits, targets, needs, &Given::default())
}

/// Stats of full logits `[N, V]`, left in the autograd graph.
pub fn stats_of(logits: &Tensor, targets: &Tensor, needs: &Needs, given: &Given) -> TokenStats {
    let sum = |t: &Tensor| t.sum_dim_intlist([-1i64].as_slice(), false, None);
    let column = targets.unsqueeze(1);
    let target_logit = logits.gather(1, &column, false).squeeze_dim(1);
    let all = logits.log_softmax(-1, None);
    let log_sum_exp = || logits.logsumexp([-1i64].as_slice(), false);
    let log1m_p = |column: &Tensor| {
        let others = logits
            .scatter_value(1, column, f64::NEG_INFINITY)
            .logsumexp([-1i64].as_slice(), false);
        others - log_sum_exp()
    };
    let top = (needs.top_k > 0).then(|| logits.topk(needs.top_k as i64, -1, true, true));
    let (top_logits, top_ids) = top.unzip();
    let asked = needs.candidates || needs.candidate_log1m_p;
    let candidates = given.candidates.filter(|_| asked);
    let of_candidates = |wanted: bool, of: &dyn Fn(&Tensor) -> Tensor, none: f64| {
        candidates.filter(|_| wanted).map(|ids| {
            let columns: Vec<Tensor> = (0..ids.size()[1])
                .map(|c| of(&ids.narrow(1, c, 1).clamp_min(0)))
                .collect();
            Tensor::stack(&columns, 1).masked_fill(&ids.lt(0), none)
        })
    };
    let kl = needs.kl.zip(given.reference).map(|(kl, reference)| {
        let theirs = reference.log_softmax(-1, None);
        match kl {
            Kl::Forward => sum(&(theirs.exp() * (&theirs - &all))),
            Kl::Reverse => sum(&(all.exp() * (&all - &theirs))),
        }
    });
    let off_target = || {
        let squares = (logits.sigmoid() - 0.5).square();
        let others = squares.scatter_value(1, &column, 0.0);
        sum(&others) / (logits.size()[1] - 1)
    };
    TokenStats {
        target_logit: needs.target_logit.then(|| target_logit.shallow_clone()),
        log1m_p: needs.log1m_p.then(|| log1m_p(&column)),
        top_logits,
        top_ids,
        log_sum_exp: needs.log_sum_exp.then(log_sum_exp),
        entropy: needs.entropy.then(|| -sum(&(all.exp() * &all))),
        collision: needs.collision.then(|| sum(&all.exp().square()).log().detach()),
        kl,
        candidate_ids: candidates.map(Tensor::shallow_clone),
        candidate_logits: of_candidates(
            needs.candidates,
            &|column| logits.gather(1, column, false).squeeze_dim(1),
            f64::NEG_INFINITY,
        ),
        candidate_log1m_p: of_candidates(needs.candidate_log1m_p, &log1m_p, 0.0),
        off_target: needs.off_target.then(off_target),
        ..TokenStats::new(
            targets.shallow_clone(),
            all.gather(1, &column, false).squeeze_dim(1),
            target_logit.ge_tensor(&logits.amax([-1i64].as_slice(), false)),
        )
    }
}

/// Numbers from a seed, evenly spread over `[0, 1)`.
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Self {
        Numbers(seed)
    }

    pub fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() * n as f64) as usize
    }

    /// A tensor of numbers in `(-scale, scale)`.
    pub fn tensor(&mut self, size: &[i64], scale: f64) -> Tensor {
        let n: i64 = size.iter().product();
        let values: Vec<f64> = (0..n).map(|_| (2.0 * self.next() - 1.0) * scale).collect();
        Tensor::from_slice(&values).view(size)
    }
}

/// A made batch: rows of a few examples with all three labels, in `f64`.
pub struct Made {
    pub hidden: Tensor,
    pub embedding: Tensor,
    pub targets: Vec<i64>,
    pub example: Vec<i64>,
    pub is_eos: Vec<bool>,
    pub labels: Vec<i8>,
    pub draws: Vec<f64>,
    pub text: Text,
}

/// The whole batch as losses that read the text see it, whichever rows are left of it.
#[derive(Default, Clone)]
pub struct Text {
    pub prompts: Vec<Vec<i64>>,
    pub completions: Vec<Vec<i64>>,
    /// Which token of its completion each row is.
    pub position: Vec<usize>,
}

impl Made {
    pub fn new(seed: u64, lengths: &[usize], labels: &[i8], d: i64, v: usize) -> Made {
        let mut numbers = Numbers::new(seed);
        let mut made = Made {
            hidden: Tensor::new(),
            embedding: numbers.tensor(&[v as i64, d], 1.5),
            targets: Vec::new(),
            example: Vec::new(),
            is_eos: Vec::new(),
            labels: labels.to_vec(),
            draws: Vec::new(),
            text: Text::default(),
        };
        for (example, &length) in lengths.iter().enumerate() {
            for position in 0..length {
                made.targets.push(numbers.below(v) as i64);
                made.example.push(example as i64);
                made.is_eos.push(position + 1 == length);
                made.draws.push(numbers.next());
                made.text.position.push(position);
            }
            let completion = made.targets[made.targets.len() - length..].to_vec();
            made.text.completions.push(completion);
        }
        // Few tokens, so that they come up again.
        let mut words = Numbers::new(!seed);
        for &length in lengths {
            let prompt = (0..length + 2).map(|_| words.below(v) as i64);
            made.text.prompts.push(prompt.collect());
        }
        made.hidden = numbers.tensor(&[made.targets.len() as i64, d], 1.5);
        made
    }

    pub fn n_rows(&self) -> usize {
        self.targets.len()
    }

    /// The rows with these indices, in this order; the examples keep their numbers.
    pub fn rows(&self, picked: &[usize]) -> Made {
        let index: Vec<i64> = picked.iter().map(|&i| i as i64).collect();
        Made {
            hidden: self.hidden.index_select(0, &Tensor::from_slice(&index)),
            embedding: self.embedding.shallow_clone(),
            targets: picked.iter().map(|&i| self.targets[i]).collect(),
            example: picked.iter().map(|&i| self.example[i]).collect(),
            is_eos: picked.iter().map(|&i| self.is_eos[i]).collect(),
            labels: self.labels.clone(),
            draws: picked.iter().map(|&i| self.draws[i]).collect(),
            text: Text {
                position: picked.iter().map(|&i| self.text.position[i]).collect(),
                ..self.text.clone()
            },
        }
    }

    pub fn token_rows(&self) -> TokenRows {
        TokenRows::new(&self.example, &self.is_eos, &self.labels, Device::Cpu).unwrap()
    }

    pub fn counts(&self) -> TokenCounts {
        TokenCounts::of(&self.token_rows()).unwrap()
    }

    /// The rows with what the loss reads from the text.
    pub fn rows_for(&self, loss: &Loss) -> TokenRows {
        let texts = self.text.prompts.iter().zip(&self.text.completions);
        let whole: Vec<Option<Marks>> = texts.map(|(prompt, text)| loss.marks(prompt, text)).collect();
        let marks = (0..self.n_rows()).filter_map(|row| {
            let (all, at) = match self.text.position.get(row) {
                Some(&at) => (whole[self.example[row] as usize].clone()?, at),
                None => (loss.marks(&[], &self.targets[row..=row])?, 0),
            };
            Some(Marks {
                weights: all.weights.map(|weights| vec![weights[at]]),
                candidates: all.candidates.map(|candidates| vec![candidates[at].clone()]),
            })
        });
        self.token_rows().with_marks(&marks.collect::<Vec<_>>()).unwrap()
    }

    /// Counts with the weights that the loss gives to the whole batch.
    pub fn weighted(&self, loss: &Loss, counts: &TokenCounts) -> TokenCounts {
        let Text {
            prompts, completions, ..
        } = &self.text;
        let texts = prompts.iter().zip(completions).zip(&self.labels);
        texts.fold(*counts, |counts, ((prompt, completion), &label)| {
            let weights = loss.marks(prompt, completion).and_then(|marks| marks.weights);
            counts.with_weights(weights.unwrap_or_default().into_iter().map(|weight| (label, weight)))
        })
    }

    pub fn draws(&self) -> Tensor {
        Tensor::from_slice(&self.draws).view([-1, 1])
    }

    /// The op with all that the loss needs.
    pub fn op(&self, loss: &Loss, hidden: &Tensor, embedding: &Tensor, rows: &TokenRows) -> TokenOp {
        let op = TokenOp::new(hidden, embedding, &Tensor::from_slice(&self.targets), &loss.needs()).unwrap();
        match &rows.candidates {
            Some(ids) => op.with_candidates(ids).unwrap(),
            None => op,
        }
    }

    /// Value and gradients through the op in one pass.
    pub fn fused(&self, loss: &Loss, counts: &TokenCounts, chunk_rows: usize) -> Outcome {
        let hidden = self.hidden.detach().set_requires_grad(true);
        let embedding = self.embedding.detach().set_requires_grad(true);
        let (rows, counts) = (self.rows_for(loss), self.weighted(loss, counts));
        let op = self.op(loss, &hidden, &embedding, &rows).with_chunk_rows(chunk_rows);
        let fused = op.fused_loss(&**loss, &rows, &counts, Some(&self.draws())).unwrap();
        fused.backward().unwrap();
        Outcome {
            value: fused.value,
            hidden: hidden.grad(),
            embedding: embedding.grad(),
        }
    }

    /// Value and gradients through the op.
    pub fn through_op(&self, loss: &Loss, counts: &TokenCounts, chunk_rows: Option<usize>) -> Outcome {
        let hidden = self.hidden.detach().set_requires_grad(true);
        let embedding = self.embedding.detach().set_requires_grad(true);
        let rows = self.rows_for(loss);
        let op = self.op(loss, &hidden, &embedding, &rows);
        let op = match chunk_rows {
            Some(rows) => op.with_chunk_rows(rows),
            None => op,
        };
        let stats = op.forward().unwrap();
        let counts = self.weighted(loss, counts);
        let value = loss.evaluate(&stats, &rows, &counts, Some(&self.draws())).unwrap();
        value.total.backward();
        op.surrogate(&stats).unwrap().backward();
        Outcome {
            value,
            hidden: hidden.grad(),
            embedding: embedding.grad(),
        }
    }

    /// Value and gradients through full logits and autograd alone.
    pub fn through_logits(&self, loss: &Loss, counts: &TokenCounts) -> Outcome {
        let hidden = self.hidden.detach().set_requires_grad(true);
        let embedding = self.embedding.detach().set_requires_grad(true);
        let logits = hidden.matmul(&embedding.tr());
        let rows = self.rows_for(loss);
        let given = Given {
            candidates: rows.candidates.as_ref(),
            ..Given::default()
        };
        let stats = stats_of(&logits, &Tensor::from_slice(&self.targets), &loss.needs(), &given);
        let counts = self.weighted(loss, counts);
        let value = loss.evaluate(&stats, &rows, &counts, Some(&self.draws())).unwrap();
        value.total.backward();
        let or_zero = |t: &Tensor| if t.grad().defined() { t.grad() } else { t.zeros_like() };
        Outcome {
            hidden: or_zero(&hidden),
            embedding: or_zero(&embedding),
            value,
        }
    }
}

pub struct Outcome {
    pub value: LossValue,
    pub hidden: Tensor,
    pub embedding: Tensor,
}

impl Outcome {
    pub fn total(&self) -> f64 {
        self.value.total.double_value(&[])
    }
}

/// Tensors whose values are all below this say nothing but that they are small: what is left where parts cancel.
const SMALL: f64 = 1e-6;

/// What sums of numbers near one leave in `f64`, however small what comes out.
const ROUNDING: f64 = 1e-14;

/// The largest difference beyond rounding, relative to the largest value of `b`; where `b` is small all over, `a` must be so as well, and the
/// difference is the absolute one.
pub fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    let largest = |t: &Tensor| t.abs().max().double_value(&[]);
    let (a, b) = (a.detach().to_kind(Kind::Double), b.detach().to_kind(Kind::Double));
    let apart = largest(&(&a - &b));
    // Not `max` before the check: it would take a number over NaN.
    let beyond = if apart <= ROUNDING { 0.0 } else { apart - ROUNDING };
    match (largest(&a), largest(&b)) {
        _ if apart.is_nan() => f64::INFINITY,
        (_, scale) if scale > SMALL => beyond / scale,
        (ours, _) if ours > SMALL => f64::INFINITY,
        _ => beyond,
    }
}

pub fn all_finite(t: &Tensor) -> bool {
    t.isfinite().all().int64_value(&[]) == 1
}

pub fn numbers(t: &Tensor) -> Vec<f64> {
    Vec::try_from(t.detach().to_kind(Kind::Double).reshape([-1])).unwrap()
}
