//! The chunked op against plain full logits and autograd: same values, same gradients, whatever the chunk.

#![allow(clippy::unwrap_used, reason = "a test: a panic is the report")]

mod errors;
mod full_logits;
mod fused;
mod gradients;
#[path = "../plain/mod.rs"]
mod plain;
mod stats;

use std::ops::Range;

use plain::Numbers;
use tch::{Kind, Tensor};
use unsay_losses::{Needs, TokenStats};

/// All that needs nothing but logits and targets.
const ALL: Needs = Needs {
    top_k: 4,
    log1m_p: true,
    target_logit: true,
    log_sum_exp: true,
    entropy: true,
    collision: true,
    kl: None,
    candidates: false,
    candidate_log1m_p: false,
    off_target: true,
    without_logp: false,
};

/// The stats that collect gradients, in one order.
fn columns(stats: &TokenStats) -> Vec<(&'static str, Tensor)> {
    let rest = [
        ("target_logit", &stats.target_logit),
        ("log1m_p", &stats.log1m_p),
        ("top_logits", &stats.top_logits),
        ("log_sum_exp", &stats.log_sum_exp),
        ("entropy", &stats.entropy),
        ("kl", &stats.kl),
        ("candidate_logits", &stats.candidate_logits),
        ("candidate_log1m_p", &stats.candidate_log1m_p),
        ("off_target", &stats.off_target),
    ];
    let rest = rest.into_iter().filter_map(|(name, t)| Some((name, t.as_ref()?)));
    [("logp", &stats.logp)]
        .into_iter()
        .chain(rest)
        .map(|(name, t)| (name, t.shallow_clone()))
        .collect()
}

/// Some scalar that uses every stat of every third row or so, with other weights everywhere; `rows` of `n` rows.
fn scalar(stats: &TokenStats, seed: u64, n: i64, rows: Range<i64>) -> Tensor {
    let mut weights = Numbers::new(seed);
    let mut total = Tensor::from(0f64);
    for (at, (_, column)) in columns(stats).iter().enumerate() {
        let size = [&[n], &column.size()[1..]].concat();
        let mut weights = weights.tensor(&size, 1.0);
        for row in (0..n).filter(|row| (row + at as i64) % 3 == 0) {
            let _ = weights.get(row).fill_(0.0);
        }
        weights = weights.narrow(0, rows.start, rows.end - rows.start);
        let known = column.masked_fill(&column.isinf(), 0.0);
        total += (known * weights).sum(Kind::Double);
    }
    total
}
