//! The settings of one training run, as a manifest writes them.

use serde::{Deserialize, Serialize};
use unsay_model::Precision;

use crate::schedule::Schedule;

/// How long, how fast and on how much at a time to train.
///
/// The seed is not here: it is the run's, and is handed to [`crate::Fit::open`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Updates in all; at least 1.
    pub steps: u64,
    /// Examples in one logical batch, over which the loss is averaged; at least 1.
    pub batch: usize,
    /// Examples that go through the model at once; changes memory and speed, never the update. Without it the
    /// whole batch. At least 1.
    #[serde(default)]
    pub micro_batch: Option<usize>,
    /// The peak learning rate; above 0.
    pub lr: f64,
    /// Updates of linear warm-up; fewer than `steps`, or 0 for none.
    #[serde(default)]
    pub warmup: u64,
    /// The course of the learning rate after the warm-up.
    #[serde(default)]
    pub schedule: Schedule,
    /// The largest norm of the whole gradient; longer gradients are scaled down to it. `null` turns it off.
    #[serde(default = "default_clip")]
    pub clip: Option<f64>,
    /// Decoupled weight decay, multiplied by the learning rate; at least 0. Not applied to one-dimensional
    /// parameters (norms and biases).
    #[serde(default)]
    pub weight_decay: f64,
    /// Decay rates of the two moments; each in `[0, 1)`.
    #[serde(default = "default_betas")]
    pub betas: (f64, f64),
    /// The term that keeps AdamW's divisor from zero; above 0.
    #[serde(default = "default_eps")]
    pub eps: f64,
    /// Validate every so many steps. Without it once, after the last step.
    #[serde(default)]
    pub eval_every: Option<u64>,
    /// Write a checkpoint every so many steps. Without it once, after the last step.
    #[serde(default)]
    pub checkpoint_every: Option<u64>,
    /// The kind that the model computes in.
    #[serde(default, skip_serializing_if = "Precision::is_default")]
    pub precision: Precision,
    /// Keep only what enters each block on the way forward and compute the rest again on the way back: less
    /// memory, about a third more time, the same gradients.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub checkpoint_activations: bool,
}

fn default_clip() -> Option<f64> {
    Some(1.0)
}

fn default_betas() -> (f64, f64) {
    (0.9, 0.999)
}

fn default_eps() -> f64 {
    1e-8
}

impl Settings {
    /// Settings with every default in place.
    pub fn new(steps: u64, batch: usize, lr: f64) -> Self {
        Self {
            steps,
            batch,
            micro_batch: None,
            lr,
            warmup: 0,
            schedule: Schedule::default(),
            clip: default_clip(),
            weight_decay: 0.0,
            betas: default_betas(),
            eps: default_eps(),
            eval_every: None,
            checkpoint_every: None,
            precision: Precision::default(),
            checkpoint_activations: false,
        }
    }

    /// Examples that go through the model at once.
    pub fn micro_batch(&self) -> usize {
        self.micro_batch.unwrap_or(self.batch).min(self.batch)
    }

    /// The learning rate of update `update`, counted from 0.
    pub fn learning_rate(&self, update: u64) -> f64 {
        self.lr * self.schedule.factor(update, self.warmup, self.steps)
    }

    /// Every value out of range, as (field, message); empty when all is well.
    pub fn check(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        let mut expect = |ok: bool, field: &str, wanted: &str, found: String| {
            if !ok {
                problems.push((field.to_owned(), format!("expected {wanted}, got {found}")));
            }
        };
        let positive = |x: f64| x.is_finite() && x > 0.0;
        expect(self.steps >= 1, "steps", "at least 1", self.steps.to_string());
        expect(
            (1..=1 << 20).contains(&self.batch),
            "batch",
            "1 to 1048576",
            self.batch.to_string(),
        );
        if let Some(micro) = self.micro_batch {
            expect(micro >= 1, "micro_batch", "at least 1", micro.to_string());
            let wanted = format!("at most `batch` ({})", self.batch);
            expect(micro <= self.batch, "micro_batch", &wanted, micro.to_string());
        }
        expect(positive(self.lr), "lr", "a number above 0", self.lr.to_string());
        let wanted = format!("fewer than `steps` ({})", self.steps);
        expect(
            self.warmup == 0 || self.warmup < self.steps,
            "warmup",
            &wanted,
            self.warmup.to_string(),
        );
        if let Some(clip) = self.clip {
            expect(
                positive(clip),
                "clip",
                "a number above 0, or null for no clipping",
                clip.to_string(),
            );
        }
        let decay = self.weight_decay;
        expect(
            decay.is_finite() && decay >= 0.0,
            "weight_decay",
            "a number of at least 0",
            decay.to_string(),
        );
        let shrink = decay * self.lr;
        let wanted = "a product with `lr` below 1, or the weights would change sign";
        expect(
            shrink.is_nan() || shrink < 1.0,
            "weight_decay",
            wanted,
            shrink.to_string(),
        );
        for (field, beta) in [("betas[0]", self.betas.0), ("betas[1]", self.betas.1)] {
            expect(
                (0.0..1.0).contains(&beta),
                field,
                "a number in [0, 1)",
                beta.to_string(),
            );
        }
        expect(positive(self.eps), "eps", "a number above 0", self.eps.to_string());
        for (field, every) in [
            ("eval_every", self.eval_every),
            ("checkpoint_every", self.checkpoint_every),
        ] {
            expect(every != Some(0), field, "at least 1", "0".to_owned());
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_manifest_form_takes_the_defaults() {
        let settings: Settings = serde_json::from_str(r#"{"steps": 10, "batch": 4, "lr": 0.001}"#).unwrap();
        assert_eq!(settings, Settings::new(10, 4, 0.001));
        assert!(settings.check().is_empty());
        assert_eq!(settings.micro_batch(), 4);
    }

    #[test]
    fn clipping_can_be_turned_off_and_the_schedule_named() {
        let text = r#"{"steps": 10, "batch": 4, "lr": 0.001, "clip": null, "schedule": "cosine", "warmup": 2, "betas": [0.9, 0.95]}"#;
        let settings: Settings = serde_json::from_str(text).unwrap();
        assert_eq!(settings.clip, None);
        assert_eq!(settings.schedule, Schedule::Cosine);
        assert_eq!(settings.betas, (0.9, 0.95));
    }

    #[test]
    fn precision_and_checkpointing_are_written_only_when_they_are_chosen() {
        let text = |settings: &Settings| serde_json::to_string(settings).unwrap();
        let plain = Settings::new(10, 4, 0.5);
        assert!(!text(&plain).contains("precision") && !text(&plain).contains("checkpoint_activations"));
        let chosen =
            r#"{"steps": 10, "batch": 4, "lr": 0.5, "precision": {"bf16": {}}, "checkpoint_activations": true}"#;
        let chosen: Settings = serde_json::from_str(chosen).unwrap();
        assert_eq!(chosen.precision, Precision::Bf16 { even_if_slower: false });
        assert!(chosen.checkpoint_activations);
        assert_eq!(serde_json::from_str::<Settings>(&text(&chosen)).unwrap(), chosen);
    }

    #[test]
    fn unknown_and_missing_fields_are_refused() {
        assert!(serde_json::from_str::<Settings>(r#"{"steps": 10, "batch": 4, "lr": 0.1, "warm_up": 2}"#).is_err());
        assert!(serde_json::from_str::<Settings>(r#"{"steps": 10, "batch": 4}"#).is_err());
    }

    #[test]
    fn every_range_problem_is_reported() {
        let settings = Settings {
            steps: 0,
            batch: 0,
            micro_batch: Some(0),
            lr: f64::NAN,
            warmup: 5,
            clip: Some(-1.0),
            weight_decay: -0.1,
            betas: (1.0, -0.5),
            eps: 0.0,
            eval_every: Some(0),
            checkpoint_every: Some(0),
            ..Settings::new(1, 1, 1.0)
        };
        let fields: Vec<String> = settings.check().into_iter().map(|(field, _)| field).collect();
        let expected = [
            "steps",
            "batch",
            "micro_batch",
            "lr",
            "warmup",
            "clip",
            "weight_decay",
            "betas[0]",
            "betas[1]",
            "eps",
            "eval_every",
            "checkpoint_every",
        ];
        assert_eq!(fields, expected);
        let decay = Settings {
            weight_decay: 20.0,
            ..Settings::new(1, 1, 0.1)
        };
        assert_eq!(decay.check().len(), 1);
        let micro = Settings {
            micro_batch: Some(3),
            ..Settings::new(1, 2, 0.1)
        };
        assert_eq!(micro.check()[0].1, "expected at most `batch` (2), got 3");
    }
}
