//! Token losses: CRINGE and unlikelihood.

use serde_json::Value;
use tch::{Device, Kind, Tensor};
use unsay_losses::token::{Cringe, Loss, Nll, TokenLoss, Unlikelihood};
use unsay_losses::{LossValue, TokenCounts, TokenOp, TokenRows};

use crate::files::{cases, close, counted, floats, integers, rows_of};
use crate::plain::numbers;

/// Cases of `cringe_loss` in which the reference's ignore index swallows part of the contrast.
const IGNORE_INDEX_QUIRKS: [&str; 2] = [
    "ct_on_positives_ignore_index_0_is_noop",
    "ignore_index_1_kills_negative_ct",
];

/// Cases of `unlikelihood_reward` in which the reference's clamp of `1 - p` flattens the loss of row 0.
const CLAMPED: [(&str, f64); 2] = [("saturated_clamp_1e-6", 1e-6), ("saturated_clamp_1e-20", 1e-20)];

/// Aligned tokens as the reference sees them, paddings included: one row per token.
struct Tokens {
    logits: Vec<Vec<f64>>,
    targets: Vec<i64>,
    labels: Vec<i8>,
    example: Vec<i64>,
    padding: i64,
    draws: Vec<f64>,
}

/// What our side gives for [`Tokens`], with zeros where the reference has paddings.
struct Ours {
    value: LossValue,
    gradient: Vec<Vec<f64>>,
    counts: TokenCounts,
}

impl Tokens {
    /// Runs a loss through the op: the hidden states are the logits and the embedding is the identity.
    fn run(&self, loss: &Loss) -> Ours {
        let v = self.logits[0].len();
        let kept: Vec<usize> = (0..self.targets.len())
            .filter(|&i| self.targets[i] != self.padding)
            .collect();
        let flat: Vec<f64> = kept.iter().flat_map(|&i| self.logits[i].clone()).collect();
        let logits = Tensor::from_slice(&flat).view([-1, v as i64]).set_requires_grad(true);
        let identity = Tensor::eye(v as i64, (Kind::Double, Device::Cpu));
        let targets: Vec<i64> = kept.iter().map(|&i| self.targets[i]).collect();
        let example: Vec<i64> = kept.iter().map(|&i| self.example[i]).collect();
        let n_examples = self.example.iter().max().unwrap() + 1;
        let labels: Vec<i8> = (0..n_examples)
            .map(|e| self.labels[self.example.iter().position(|&x| x == e).unwrap()])
            .collect();
        let rows = TokenRows::new(&example, &vec![false; kept.len()], &labels, Device::Cpu).unwrap();
        let draws: Vec<f64> = kept.iter().map(|&i| self.draws[i]).collect();

        let op = TokenOp::new(&logits, &identity, &Tensor::from_slice(&targets), &loss.needs()).unwrap();
        let stats = op.forward().unwrap();
        let counts = TokenCounts::of(&rows).unwrap();
        let value = loss
            .evaluate(&stats, &rows, &counts, Some(&Tensor::from_slice(&draws).view([-1, 1])))
            .unwrap();
        value.total.backward();
        op.surrogate(&stats).unwrap().backward();
        let mut gradient = vec![vec![0.0; v]; self.targets.len()];
        for (row, values) in kept.iter().zip(numbers(&logits.grad()).chunks(v)) {
            gradient[*row] = values.to_vec();
        }
        Ours {
            value,
            gradient,
            counts,
        }
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn log_sum_exp(row: &[f64]) -> f64 {
    let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    largest + row.iter().map(|x| (x - largest).exp()).sum::<f64>().ln()
}

/// The ids of the `k + 1` largest logits and the probability that each is drawn.
pub(crate) fn candidates(row: &[f64], target: i64, k: usize) -> (Vec<usize>, Vec<f64>) {
    let mut ids: Vec<usize> = (0..row.len()).collect();
    ids.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
    ids.truncate(k + 1);
    let out = ids.iter().position(|&id| id as i64 == target).unwrap_or(k);
    let weights: Vec<f64> = ids
        .iter()
        .enumerate()
        .map(|(place, &id)| if place == out { 0.0 } else { row[id].exp() })
        .collect();
    let sum: f64 = weights.iter().sum();
    (ids, weights.iter().map(|w| w / sum).collect())
}

/// The draw in the middle of the interval that picks the candidate at `place`.
pub(crate) fn draw_for(probabilities: &[f64], place: usize) -> f64 {
    probabilities[..place].iter().sum::<f64>() + probabilities[place] / 2.0
}

/// Tokens of a case and, for each, the sampled token.
fn cringe_tokens(case: &Value, padding: &str, k: usize, example: Vec<i64>, labels: Vec<i8>) -> (Tokens, Vec<usize>) {
    let inputs = &case["inputs"];
    let targets = integers(inputs.get("targets").unwrap_or(&inputs["label_vec"]));
    let flat = floats(&inputs["logits"]);
    let logits: Vec<Vec<f64>> = flat.chunks(flat.len() / targets.len()).map(<[f64]>::to_vec).collect();
    let places = integers(&case["outputs"]["sampled_topk_position"]);
    let mut sampled = Vec::new();
    let mut draws = Vec::new();
    for ((row, &target), &place) in logits.iter().zip(&targets).zip(&places) {
        let (ids, probabilities) = candidates(row, target, k);
        sampled.push(ids[place as usize]);
        draws.push(draw_for(&probabilities, place as usize));
    }
    assert_eq!(
        sampled,
        integers(&case["outputs"]["sampled_token"])
            .iter()
            .map(|&x| x as usize)
            .collect::<Vec<_>>()
    );
    let padding = case["params"][padding].as_i64().unwrap();
    (
        Tokens {
            logits,
            targets,
            labels,
            example,
            padding,
            draws,
        },
        sampled,
    )
}

#[test]
fn golden_cringe_equals_the_reference_per_token_and_in_gradient() {
    let mut compared = 0;
    let mut deviating = 0;
    for case in cases("cringe_loss") {
        let id = case["id"].as_str().unwrap();
        let flag = |name: &str| case["params"][name].as_bool().unwrap();
        let alpha = case["params"]["ct_loss_weight"].as_f64().unwrap();
        let k = case["params"]["num_pos_predictions"].as_u64().unwrap() as usize;
        let loss = Cringe {
            detach_positives: flag("detach_positives_during_ct"),
            contrast_on_positives: flag("train_ct_on_positive_examples"),
            ce_on_positives: flag("train_ce_on_positive_examples"),
            ..Cringe::new(alpha, k)
        };
        let n = case["inputs"]["targets"].as_array().unwrap().len();
        // Each token its own example, so that the values per example are values per token.
        let labels = match &case["inputs"]["classifier_labels"] {
            Value::Null => vec![-1; n],
            labels => integers(labels).iter().map(|&l| l as i8).collect(),
        };
        let (tokens, sampled) = cringe_tokens(&case, "ignore_index", k, (0..n as i64).collect(), labels);
        let ours = tokens.run(&Loss::Cringe(loss));
        let count = loss.rows_trained(&ours.counts);
        let per_token: Vec<f64> = numbers(&ours.value.per_example).iter().map(|x| x * count).collect();
        let total = ours.value.total.double_value(&[]);

        // The formula once more in plain floating point, right also where the reference has its quirk.
        let mut sum = 0.0;
        for row in 0..n {
            let (z, y, s, label) = (
                &tokens.logits[row],
                tokens.targets[row] as usize,
                sampled[row],
                tokens.labels[row],
            );
            let mut expected = 0.0;
            let mut gradient = vec![0.0; z.len()];
            if tokens.targets[row] != tokens.padding {
                if label == -1 || label == 1 && loss.ce_on_positives {
                    expected += log_sum_exp(z) - z[y];
                    gradient
                        .iter_mut()
                        .zip(z)
                        .for_each(|(g, x)| *g += (x - log_sum_exp(z)).exp());
                    gradient[y] -= 1.0;
                }
                let sign = f64::from(1 - 2 * i32::from(label == 1));
                if label == 0 || label == 1 && loss.contrast_on_positives {
                    expected += alpha * softplus(sign * (z[y] - z[s]));
                    let push = alpha * sign * sigmoid(sign * (z[y] - z[s]));
                    gradient[y] += push;
                    gradient[s] -= if loss.detach_positives { 0.0 } else { push };
                }
            }
            close(&format!("{id} token {row} by formula"), per_token[row], expected);
            for (ours, formula) in ours.gradient[row].iter().zip(&gradient) {
                close(
                    &format!("{id} gradient of token {row} by formula"),
                    *ours,
                    formula / count,
                );
            }
            sum += expected;
        }
        close(&format!("{id} by formula"), total, sum / count);

        let theirs = case["outputs"]["total"].as_f64().unwrap();
        if IGNORE_INDEX_QUIRKS.contains(&id) {
            // Reason: the reference's two-way contrast inherits the padding id as a class to ignore. Ours keeps the
            // contrast, so it is larger, and equals the formula above.
            assert!(total > theirs + 0.1, "{id}: {total} against {theirs}");
            deviating += 1;
            continue;
        }
        close(id, total, theirs);
        close(id, count, case["outputs"]["token_count"].as_f64().unwrap());
        for (row, theirs) in floats(&case["outputs"]["loss_per_token"]).iter().enumerate() {
            close(&format!("{id} token {row}"), per_token[row], *theirs);
        }
        for (row, theirs) in rows_of(&case["grads"]["total_wrt_logits"], tokens.logits[0].len())
            .iter()
            .enumerate()
        {
            for (ours, theirs) in ours.gradient[row].iter().zip(theirs) {
                close(&format!("{id} gradient of token {row}"), *ours, *theirs);
            }
        }
        compared += 1;
    }
    counted("cringe_loss", (compared, deviating), (11, 2));
}

#[test]
fn golden_cringe_reduces_over_a_batch_as_the_reference_agent_does() {
    let mut compared = 0;
    for case in cases("cringe_agent_reduction") {
        let id = case["id"].as_str().unwrap();
        let alpha = case["params"]["ct_loss_weight"].as_f64().unwrap();
        let k = case["params"]["num_pos_predictions"].as_u64().unwrap() as usize;
        let loss = Cringe::new(alpha, k);
        let classes = integers(&case["inputs"]["classifier_label"]);
        let width = case["inputs"]["label_vec"][0].as_array().unwrap().len();
        let example: Vec<i64> = (0..classes.len() * width).map(|i| (i / width) as i64).collect();
        let labels = example.iter().map(|&e| classes[e as usize] as i8).collect();
        let (tokens, _) = cringe_tokens(&case, "null_idx", k, example, labels);
        let ours = tokens.run(&Loss::Cringe(loss));

        close(
            id,
            ours.value.total.double_value(&[]),
            case["outputs"]["loss"].as_f64().unwrap(),
        );
        let gradient = rows_of(&case["grads"]["loss_wrt_logits"], tokens.logits[0].len());
        for (ours, theirs) in ours.gradient.iter().flatten().zip(gradient.iter().flatten()) {
            close(&format!("{id} gradient"), *ours, *theirs);
        }
        // The reference logs each example's own mean; ours are shares of the total.
        let metrics = &case["outputs"]["metrics"];
        let tokens_of = |name: &str| floats(&metrics[name]);
        let count = loss.rows_trained(&ours.counts);
        for (e, share) in numbers(&ours.value.per_example).iter().enumerate() {
            let own = tokens_of("total_target_tokens")[e];
            close(
                &format!("{id} example {e}"),
                share * count / own,
                floats(&metrics["loss"])[e],
            );
        }
        for (term, tokens) in [("ce_loss", "ce_target_tokens"), ("ct_loss", "ct_target_tokens")] {
            let own = tokens_of(tokens);
            let sums = floats(&metrics[term])
                .into_iter()
                .zip(&own)
                .map(|(mean, n)| if *n == 0.0 { 0.0 } else { mean * n });
            let theirs = sums.sum::<f64>() / own.iter().sum::<f64>();
            let ours = ours.value.terms.iter().find(|(name, _)| *name == term).unwrap();
            close(&format!("{id} {term}"), ours.1.double_value(&[]), theirs);
        }
        compared += 1;
    }
    counted("cringe_agent_reduction", (compared, 0), (2, 0));
}

#[test]
fn golden_unlikelihood_equals_the_reference_except_where_its_clamp_kills_the_gradient() {
    let mut compared = 0;
    let mut deviating = 0;
    for case in cases("unlikelihood_reward") {
        let id = case["id"].as_str().unwrap();
        let alpha = case["params"]["alpha"].as_f64().unwrap();
        let training = case["params"]["is_training"].as_bool().unwrap();
        let rewards = floats(&case["inputs"]["rewards"]);
        let targets = integers(&case["inputs"]["targets"]);
        let width = targets.len() / rewards.len();
        let flat = floats(&case["inputs"]["logits"]);
        let v = flat.len() / targets.len();
        let tokens = Tokens {
            logits: flat.chunks(v).map(<[f64]>::to_vec).collect(),
            // A reward of zero counts as positive; outside training everything is.
            labels: (0..targets.len())
                .map(|i| i8::from(rewards[i / width] >= 0.0 || !training))
                .collect(),
            example: (0..targets.len()).map(|i| (i / width) as i64).collect(),
            draws: vec![0.5; targets.len()],
            targets,
            padding: case["params"]["null_idx"].as_i64().unwrap(),
        };
        let loss = if training {
            Loss::Unlikelihood(Unlikelihood { alpha })
        } else {
            Loss::Nll(Nll {})
        };
        let ours = tokens.run(&loss);
        let total = ours.value.total.double_value(&[]);
        let theirs = case["outputs"]["loss"].as_f64().unwrap();
        let gradient = rows_of(&case["grads"]["loss_wrt_logits"], v);
        let clamp = CLAMPED.iter().find(|(name, _)| *name == id).map(|(_, clamp)| *clamp);
        for (row, theirs) in gradient.iter().enumerate().skip(usize::from(clamp.is_some())) {
            for (ours, theirs) in ours.gradient[row].iter().zip(theirs) {
                close(&format!("{id} gradient of token {row}"), *ours, *theirs);
            }
        }
        let Some(clamp) = clamp else {
            close(id, total, theirs);
            compared += 1;
            continue;
        };
        // Reason: the target of row 0 leads eight others by 60, so `1 - p` is 8e-26 and the reference clamps it. Its
        // value is then -ln(clamp) and its gradient 0. Ours is exact: 60 - ln 8, and the full push.
        let n = ours.counts.negative;
        close(id, total, theirs + alpha * (60.0 - 8f64.ln() + clamp.ln()) / n);
        assert!(gradient[0].iter().all(|g| g.abs() == 0.0));
        for (token, push) in ours.gradient[0].iter().enumerate() {
            let expected = if token as i64 == tokens.targets[0] {
                alpha / n
            } else {
                -alpha / n / 8.0
            };
            close(&format!("{id} push on token {token}"), *push, expected);
        }
        deviating += 1;
    }
    counted("unlikelihood_reward", (compared, deviating), (5, 2));
}

#[test]
fn golden_oracles_of_the_method_by_hand() {
    // Logits (2, 1, 0, -1): p = (.6439, .2369, .0871, .0321).
    let one = |target: i64, loss: Loss, draw: f64| {
        Tokens {
            logits: vec![vec![2.0, 1.0, 0.0, -1.0]],
            targets: vec![target],
            labels: vec![0],
            example: vec![0],
            padding: -1,
            draws: vec![draw],
        }
        .run(&loss)
    };
    let cringe = Loss::Cringe(Cringe::new(1.0, 1));
    for (target, sampled, value, weight) in [(0usize, 1, 1.31326, 0.73106), (3, 0, 0.048587, 0.047426)] {
        let ours = one(target as i64, cringe.clone(), 0.3);
        assert!((ours.value.total.double_value(&[]) - value).abs() < 1e-5);
        let mut expected = [0.0; 4];
        expected[target] = weight;
        expected[sampled] = -weight;
        assert!(
            ours.gradient[0].iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5),
            "{:?}",
            ours.gradient
        );
    }
    // Unlikelihood of token k: d/dz_k = p_k, d/dz_j = -p_k p_j / (1 - p_k).
    let ours = one(0, Loss::Unlikelihood(Unlikelihood { alpha: 1.0 }), 0.0);
    assert!((ours.value.total.double_value(&[]) - 1.03258).abs() < 1e-5);
    let expected = [0.643914, -0.428358, -0.157584, -0.057972];
    assert!(
        ours.gradient[0].iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5),
        "{:?}",
        ours.gradient
    );
}
