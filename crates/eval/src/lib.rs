//! Evaluators: one score per example.
