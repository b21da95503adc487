//! Two heads: the loss and what generation makes of them.

use serde_json::Value;
use tch::{Device, Kind, Tensor};
use unsay_losses::director::{Director, DirectorCounts, DirectorLoss, Reduction, decode};
use unsay_losses::{LossValue, TokenOp, TokenRows};

use crate::files::{cases, close, counted, floats, integers, rows_of};
use crate::plain::numbers;

/// The reference computes everything of the second head in `f32`: values of at most five and smaller gradients.
/// They are compared to this distance, and with the formula in `f64` to the usual one.
const ROUNDING_OF_F32: f64 = 1e-6;

fn near(what: &str, ours: f64, theirs: f64) {
    assert!(
        (ours - theirs).abs() <= ROUNDING_OF_F32,
        "{what}: {ours} is not {theirs}"
    );
}

/// A case without its paddings.
struct Case {
    z: Vec<Vec<f64>>,
    u: Vec<Vec<f64>>,
    targets: Vec<i64>,
    example: Vec<i64>,
    labels: Vec<i8>,
    /// Where each row is among the rows of the case.
    place: Vec<usize>,
}

impl Case {
    fn new(case: &Value) -> Self {
        let inputs = &case["inputs"];
        let labels: Vec<i8> = integers(&inputs["classifier_label"]).iter().map(|&l| l as i8).collect();
        let all = integers(&inputs["label_vec"]);
        let (width, padding) = (all.len() / labels.len(), case["params"]["null_idx"].as_i64().unwrap());
        let place: Vec<usize> = (0..all.len()).filter(|&i| all[i] != padding).collect();
        let logits = |name: &str| {
            let flat = floats(&inputs[name]);
            let rows: Vec<Vec<f64>> = flat.chunks(flat.len() / all.len()).map(<[f64]>::to_vec).collect();
            place.iter().map(|&i| rows[i].clone()).collect::<Vec<_>>()
        };
        Case {
            z: logits("generator_logits"),
            u: logits("classifier_logits"),
            targets: place.iter().map(|&i| all[i]).collect(),
            example: place.iter().map(|&i| (i / width) as i64).collect(),
            labels,
            place,
        }
    }

    /// Value and gradients to both logits, through ops with the identity as embedding.
    fn run(&self, loss: &Director) -> (LossValue, Vec<Vec<f64>>, Vec<Vec<f64>>) {
        let v = self.z[0].len();
        let identity = Tensor::eye(v as i64, (Kind::Double, Device::Cpu));
        let leaf = |rows: &[Vec<f64>]| {
            let flat = Tensor::from_slice(&rows.concat()).view([-1, v as i64]);
            flat.set_requires_grad(true)
        };
        let (z, u, targets) = (leaf(&self.z), leaf(&self.u), Tensor::from_slice(&self.targets));
        let rows = TokenRows::new(&self.example, &vec![false; self.z.len()], &self.labels, Device::Cpu).unwrap();
        let language = TokenOp::new(&z, &identity, &targets, &loss.generator_needs()).unwrap();
        let second = TokenOp::new(&u, &identity, &targets, &loss.classifier_needs()).unwrap();
        let (generator, classifier) = (language.forward().unwrap(), second.forward().unwrap());
        let counts = DirectorCounts::of(&rows).unwrap();
        let value = loss.evaluate(&generator, &classifier, &rows, &counts).unwrap();
        value.total.backward();
        (language.surrogate(&generator).unwrap() + second.surrogate(&classifier).unwrap()).backward();
        let gradient = |t: &Tensor| numbers(&t.grad()).chunks(v).map(<[f64]>::to_vec).collect();
        (value, gradient(&z), gradient(&u))
    }

    fn n(&self, example: usize) -> f64 {
        self.example.iter().filter(|&&e| e == example as i64).count() as f64
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

#[test]
fn golden_director_equals_the_reference_in_both_heads() {
    let mut compared = 0;
    for case in cases("director_loss") {
        let id = case["id"].as_str().unwrap();
        let (params, outputs) = (&case["params"], &case["outputs"]);
        let ours = Case::new(&case);
        let trains: Vec<bool> = case["inputs"]["train_generator"]
            .as_array()
            .unwrap()
            .iter()
            .map(|flag| flag.as_bool().unwrap())
            .collect();
        let on_positives = ours
            .labels
            .iter()
            .zip(&trains)
            .any(|(&label, &trains)| label == 1 && trains);
        let learns = |e: usize| ours.labels[e] == -1 || on_positives && ours.labels[e] == 1;
        let judged = |e: usize| ours.labels[e] != -1;
        assert_eq!(trains, (0..trains.len()).map(learns).collect::<Vec<_>>(), "{id}");
        let norm = match params["explicit_classifier_norm"].as_bool().unwrap() {
            true => params["explicit_classifier_norm_coeff"].as_f64().unwrap(),
            false => 0.0,
        };
        let loss = Director {
            norm,
            train_generator_on_positives: on_positives,
            reduction: Reduction::Sum,
            ..Director::new(params["train_gamma"].as_f64().unwrap())
        };
        let (value, dz, du) = ours.run(&loss);
        let total = value.total.double_value(&[]);
        let per_example = numbers(&value.per_example);

        // Each example against the reference's sums of its two parts.
        let theirs = |name: &str| floats(&outputs[name]);
        let (gen_sums, cls_sums) = (
            theirs("generator_loss_per_example"),
            theirs("classifier_loss_per_example"),
        );
        let (gen_tokens, cls_tokens) = (theirs("generator_tokens"), theirs("classifier_tokens"));
        for (e, own) in per_example.iter().enumerate() {
            let tokens = gen_tokens[e] + cls_tokens[e];
            let heads = f64::from(u8::from(learns(e))) + f64::from(u8::from(judged(e)));
            close(&format!("{id} tokens of example {e}"), heads * ours.n(e), tokens);
            let expected = (gen_sums[e] + loss.gamma * cls_sums[e]) / tokens;
            let compare = if judged(e) { near } else { close };
            compare(&format!("{id} example {e}"), *own, expected);
        }
        let compare = if ours.labels.contains(&0) { near } else { close };
        compare(id, total, outputs["loss"].as_f64().unwrap());

        // Gradients, and the second head once more in plain `f64`.
        let v = ours.z[0].len();
        let golden = |name: &str| rows_of(&case["grads"][name], v);
        let (golden_z, golden_u) = (
            golden("loss_wrt_generator_logits"),
            golden("loss_wrt_classifier_logits"),
        );
        let mut by_formula = vec![0.0; ours.labels.len()];
        for (row, &place) in ours.place.iter().enumerate() {
            let (e, y, u) = (ours.example[row] as usize, ours.targets[row] as usize, &ours.u[row]);
            let share = gen_tokens[e] + cls_tokens[e];
            for token in 0..v {
                let what = format!("{id} gradient of row {place} to token {token}");
                close(&what, dz[row][token], golden_z[place][token]);
                near(&what, du[row][token], golden_u[place][token]);
                let g = sigmoid(u[token]);
                let slope = if !judged(e) {
                    0.0
                } else if token == y {
                    g - f64::from(ours.labels[e])
                } else {
                    norm * 2.0 * (g - 0.5) * g * (1.0 - g) / (v - 1) as f64
                };
                close(&what, du[row][token], loss.gamma * slope / share);
            }
            if judged(e) {
                let good = if ours.labels[e] == 1 { u[y] } else { -u[y] };
                let others = (0..v).filter(|&t| t != y).map(|t| (sigmoid(u[t]) - 0.5).powi(2));
                by_formula[e] += (1.0 + (-good).exp()).ln() + norm * others.sum::<f64>() / (v - 1) as f64;
            }
        }
        for (e, own) in per_example.iter().enumerate() {
            let expected = (gen_sums[e] + loss.gamma * by_formula[e]) / (gen_tokens[e] + cls_tokens[e]);
            close(&format!("{id} example {e} by formula"), *own, expected);
        }

        // The default is the same over the number of examples.
        let mean = Director {
            reduction: Reduction::Mean,
            ..loss
        };
        let examples = ours.labels.len() as f64;
        close(id, ours.run(&mean).0.total.double_value(&[]), total / examples);
        compared += 1;
    }
    counted("director_loss", (compared, 0), (4, 0));
}

#[test]
fn golden_director_decodes_as_the_reference_does() {
    let mut compared = 0;
    for case in cases("director_decode") {
        let id = case["id"].as_str().unwrap();
        let logits = |name: &str| {
            let rows = case["inputs"][name].as_array().unwrap().len() as i64;
            Tensor::from_slice(&floats(&case["inputs"][name])).view([rows, -1])
        };
        let gamma = case["params"]["infer_gamma"].as_f64().unwrap();
        let ours = numbers(&decode(&logits("generator_logits"), &logits("classifier_logits"), gamma).unwrap());
        let theirs = floats(&case["outputs"]["logprobs"]);
        assert_eq!(ours.len(), theirs.len());
        for (ours, theirs) in ours.iter().zip(theirs) {
            close(id, *ours, theirs);
        }
        compared += 1;
    }
    counted("director_decode", (compared, 0), (4, 0));
}
