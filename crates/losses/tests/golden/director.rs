//! Two heads: the loss and what generation makes of them.

use serde_json::Value;
use tch::{Device, Kind, Tensor};
use unsay_losses::director::{Director, DirectorCounts, DirectorLoss, Reduction, decode};
use unsay_losses::{LossValue, TokenOp, TokenRows};

use crate::files::{Golden, all_close, close, flags, floats, id, integers, number, rows_of, shape, total};
use crate::plain::numbers;
use crate::tokens::sigmoid;

/// The reference computes everything of the second head in `f32`: its numbers are compared to this distance, and with the
/// formula in `f64` to the usual one.
const ROUNDING_OF_F32: f64 = 1e-6;

fn near(what: &str, ours: f64, theirs: f64, _: f64) {
    let bound = ROUNDING_OF_F32 * theirs.abs().max(1.0);
    assert!((ours - theirs).abs() <= bound, "{what}: {ours} is not {theirs}");
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
        let (table, padding) = (
            shape(&inputs["label_vec"]),
            case["params"]["null_idx"].as_i64().unwrap(),
        );
        let width = table[1];
        // Which examples are labelled, it also holds as a list of its own.
        let labelled: Vec<bool> = labels.iter().map(|&label| label != -1).collect();
        assert_eq!(
            (table[0], flags(&inputs["is_ltr"])),
            (labels.len(), labelled),
            "{}",
            id(case)
        );
        let place: Vec<usize> = (0..all.len()).filter(|&i| all[i] != padding).collect();
        let logits = |name: &str| {
            let rows = rows_of(&inputs[name]);
            assert_eq!(rows.len(), all.len(), "{}", id(case));
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

pub(crate) fn training(golden: &Golden) -> (usize, usize) {
    let rtol = golden.rtol;
    for case in &golden.cases {
        let id = id(case);
        let (params, outputs) = (&case["params"], &case["outputs"]);
        let ours = Case::new(case);
        let trains = flags(&case["inputs"]["train_generator"]);
        let on_positives = ours
            .labels
            .iter()
            .zip(&trains)
            .any(|(&label, &trains)| label == 1 && trains);
        let learns = |e: usize| ours.labels[e] == -1 || on_positives && ours.labels[e] == 1;
        let judged = |e: usize| ours.labels[e] != -1;
        let n_examples = ours.labels.len();
        assert_eq!(trains, (0..n_examples).map(learns).collect::<Vec<_>>(), "{id}");
        let norm = match params["explicit_classifier_norm"].as_bool().unwrap() {
            true => number(&params["explicit_classifier_norm_coeff"]),
            false => 0.0,
        };
        let loss = Director {
            norm,
            train_generator_on_positives: on_positives,
            reduction: Reduction::Sum,
            ..Director::new(number(&params["train_gamma"]))
        };
        let (value, dz, du) = ours.run(&loss);
        let sum = total(&value);
        let per_example = numbers(&value.per_example);

        // Each example against the reference's sums of its two parts.
        let theirs = |name: &str| floats(&outputs[name]);
        let (gen_sums, cls_sums) = (
            theirs("generator_loss_per_example"),
            theirs("classifier_loss_per_example"),
        );
        let (gen_tokens, cls_tokens) = (theirs("generator_tokens"), theirs("classifier_tokens"));
        let of_examples = [gen_sums.len(), cls_sums.len(), gen_tokens.len(), cls_tokens.len()];
        assert_eq!(of_examples, [n_examples; 4], "{id}");
        let tokens_where = |trains: &dyn Fn(usize) -> bool| -> Vec<f64> {
            (0..n_examples)
                .map(|e| if trains(e) { ours.n(e) } else { 0.0 })
                .collect()
        };
        all_close(&format!("{id} tokens"), &tokens_where(&learns), &gen_tokens, rtol);
        all_close(&format!("{id} tokens"), &tokens_where(&judged), &cls_tokens, rtol);
        for (e, own) in per_example.iter().enumerate() {
            let tokens = gen_tokens[e] + cls_tokens[e];
            let expected = (gen_sums[e] + loss.gamma * cls_sums[e]) / tokens;
            let compare = if judged(e) { near } else { close };
            compare(&format!("{id} example {e}"), *own, expected, rtol);
        }
        let compare = if (0..n_examples).any(judged) { near } else { close };
        compare(id, sum, number(&outputs["loss"]), rtol);

        // Gradients, and the second head once more in plain `f64`.
        let v = ours.z[0].len();
        let slopes = |name: &str| rows_of(&case["grads"][name]);
        let (theirs_z, theirs_u) = (
            slopes("loss_wrt_generator_logits"),
            slopes("loss_wrt_classifier_logits"),
        );
        assert_eq!(
            [theirs_z.len(), theirs_u.len()],
            [shape(&case["inputs"]["label_vec"]).iter().product::<usize>(); 2],
            "{id}"
        );
        for place in (0..theirs_z.len()).filter(|place| !ours.place.contains(place)) {
            all_close(&format!("{id} padding {place}"), &vec![0.0; v], &theirs_z[place], rtol);
            all_close(&format!("{id} padding {place}"), &vec![0.0; v], &theirs_u[place], rtol);
        }
        let mut by_formula = vec![0.0; ours.labels.len()];
        for (row, &place) in ours.place.iter().enumerate() {
            let (e, y, u) = (ours.example[row] as usize, ours.targets[row] as usize, &ours.u[row]);
            let share = gen_tokens[e] + cls_tokens[e];
            for token in 0..v {
                let what = format!("{id} gradient of row {place} to token {token}");
                close(&what, dz[row][token], theirs_z[place][token], rtol);
                near(&what, du[row][token], theirs_u[place][token], rtol);
                let g = sigmoid(u[token]);
                let slope = if !judged(e) {
                    0.0
                } else if token == y {
                    g - f64::from(ours.labels[e])
                } else {
                    norm * 2.0 * (g - 0.5) * g * (1.0 - g) / (v - 1) as f64
                };
                close(&what, du[row][token], loss.gamma * slope / share, rtol);
            }
            if judged(e) {
                let good = if ours.labels[e] == 1 { u[y] } else { -u[y] };
                let others = (0..v).filter(|&t| t != y).map(|t| (sigmoid(u[t]) - 0.5).powi(2));
                by_formula[e] += (1.0 + (-good).exp()).ln() + norm * others.sum::<f64>() / (v - 1) as f64;
            }
        }
        for (e, own) in per_example.iter().enumerate() {
            let expected = (gen_sums[e] + loss.gamma * by_formula[e]) / (gen_tokens[e] + cls_tokens[e]);
            close(&format!("{id} example {e} by formula"), *own, expected, rtol);
        }

        // The default is the same over the number of examples.
        let mean = Director {
            reduction: Reduction::Mean,
            ..loss
        };
        close(id, total(&ours.run(&mean).0), sum / n_examples as f64, rtol);
    }
    (golden.cases.len(), 0)
}

pub(crate) fn decoding(golden: &Golden) -> (usize, usize) {
    for case in &golden.cases {
        let logits = |name: &str| {
            let table: Vec<i64> = shape(&case["inputs"][name]).iter().map(|&n| n as i64).collect();
            Tensor::from_slice(&floats(&case["inputs"][name])).view(table.as_slice())
        };
        let gamma = number(&case["params"]["infer_gamma"]);
        let (language, second) = (logits("generator_logits"), logits("classifier_logits"));
        assert_eq!(language.size(), second.size(), "{}", id(case));
        let ours = numbers(&decode(&language, &second, gamma).unwrap());
        all_close(id(case), &ours, &floats(&case["outputs"]["logprobs"]), golden.rtol);
    }
    (golden.cases.len(), 0)
}
