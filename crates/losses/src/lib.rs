//! Every training objective, as pure functions over per-token log-probabilities.
