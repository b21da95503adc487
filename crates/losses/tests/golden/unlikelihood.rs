//! Unlikelihood of negative completions, and of tokens from the context.

use unsay_losses::token::{Loss, Marks, Nll, TokenLoss, Unlikelihood, UnlikelihoodContext};

use crate::files::{Golden, all_close, close, floats, id, integers, number, rows_of, shape, term, total};
use crate::tokens::{Clamped, Tokens, paddings};

pub(crate) fn by_reward(golden: &Golden) -> (usize, usize) {
    let (mut compared, mut deviating) = (0, 0);
    for case in &golden.cases {
        let (id, params, inputs) = (id(case), &case["params"], &case["inputs"]);
        let alpha = number(&params["alpha"]);
        let training = params["is_training"].as_bool().unwrap();
        let rewards = floats(&inputs["rewards"]);
        let table = shape(&inputs["targets"]);
        assert_eq!(table[0], rewards.len(), "{id}");
        let targets = integers(&inputs["targets"]);
        let example: Vec<i64> = (0..targets.len()).map(|i| (i / table[1]) as i64).collect();
        let tokens = Tokens {
            logits: rows_of(&inputs["logits"]),
            // A reward of zero counts as positive; outside training everything is.
            labels: (example.iter())
                .map(|&e| i8::from(rewards[e as usize] >= 0.0 || !training))
                .collect(),
            example,
            padded: paddings(&targets, params["null_idx"].as_i64().unwrap()),
            targets,
            draws: None,
            marks: Vec::new(),
        };
        let loss = match training {
            true => Loss::Unlikelihood(Unlikelihood { alpha }),
            false => Loss::Nll(Nll {}),
        };
        let ours = tokens.run(&loss);
        // Theirs, and what the clamp took from it.
        let mut loss = number(&case["outputs"]["loss"]);
        let mut gradient = rows_of(&case["grads"]["loss_wrt_logits"]);
        assert_eq!(gradient.len(), tokens.targets.len(), "{id}");
        let negatives: Vec<usize> = tokens
            .kept()
            .into_iter()
            .filter(|&row| tokens.labels[row] == 0)
            .collect();
        let weight = alpha / negatives.len() as f64;
        let mut clamped = 0;
        for &row in &negatives {
            let of = Clamped::of(
                &tokens.logits[row],
                tokens.targets[row] as usize,
                number(&params["clamp_min"]),
            );
            let Some(of) = of else { continue };
            loss += weight * of.value;
            gradient[row]
                .iter_mut()
                .zip(&of.push)
                .for_each(|(theirs, push)| *theirs += weight * push);
            clamped += 1;
        }
        close(id, total(&ours.value), loss, golden.rtol);
        for (row, theirs) in gradient.iter().enumerate() {
            let what = format!("{id} gradient of token {row}");
            all_close(&what, &ours.gradient[row], theirs, golden.rtol);
        }
        match clamped {
            0 => compared += 1,
            _ => deviating += 1,
        }
    }
    (compared, deviating)
}

/// Value and gradient of the rows that are paddings, or of those that are none, as sums over the rows.
struct Part {
    kept: Vec<usize>,
    total: f64,
    nll: f64,
    unlikelihood: f64,
    gradient: Vec<Vec<f64>>,
}

pub(crate) fn of_the_context(golden: &Golden) -> (usize, usize) {
    let (mut compared, mut deviating) = (0, 0);
    for case in &golden.cases {
        let (id, params, outputs) = (id(case), &case["params"], &case["outputs"]);
        let (alpha, padding) = (number(&params["rank_alpha"]), params["padding_idx"].as_i64().unwrap());
        let targets = integers(&case["inputs"]["targets"]);
        let all = rows_of(&case["inputs"]["logits"]);
        assert_eq!(all.len(), targets.len(), "{id}");
        // The reference's candidates: the targets of all rows before, whatever sequence they are of, without the
        // target, and the padding in every row.
        let ours = UnlikelihoodContext {
            alpha,
            include_prompt: false,
        };
        let mut candidates = ours.marks(&[], &targets).unwrap().candidates.unwrap();
        for ids in &mut candidates {
            ids.retain(|&id| id != padding);
            ids.push(padding);
        }
        // Paddings are rows without a likelihood: the unlikelihood of theirs is what `alpha` changes.
        let part = |padded: bool, alpha: f64| -> Option<Part> {
            let paddings = paddings(&targets, padding);
            let kept: Vec<usize> = (0..targets.len()).filter(|&i| paddings[i] == padded).collect();
            let n = kept.len();
            if n == 0 {
                return None;
            }
            let tokens = Tokens {
                logits: kept.iter().map(|&i| all[i].clone()).collect(),
                targets: kept.iter().map(|&i| targets[i]).collect(),
                labels: vec![1; n],
                example: vec![0; n],
                padded: vec![false; n],
                draws: None,
                marks: vec![Marks {
                    weights: None,
                    candidates: Some(kept.iter().map(|&i| candidates[i].clone()).collect()),
                }],
            };
            let run = tokens.run(&Loss::UnlikelihoodContext(UnlikelihoodContext { alpha, ..ours }));
            let sum = n as f64;
            Some(Part {
                kept,
                total: sum * total(&run.value),
                nll: sum * term(&run.value, "ce_loss"),
                unlikelihood: sum * term(&run.value, "ul_loss"),
                gradient: run
                    .gradient
                    .iter()
                    .map(|row| row.iter().map(|g| sum * g).collect())
                    .collect(),
            })
        };
        let tokens = part(false, alpha).unwrap();
        let size = tokens.kept.len() as f64;
        close(id, size, number(&outputs["sample_size"]), golden.rtol);
        let (mut sum, mut unlikelihood) = (tokens.total, tokens.unlikelihood);
        let mut gradient = vec![vec![0.0; all[0].len()]; targets.len()];
        for (row, ours) in tokens.kept.iter().zip(tokens.gradient) {
            gradient[*row] = ours;
        }
        if let (Some(with), Some(without)) = (part(true, alpha), part(true, 0.0)) {
            sum += with.total - without.total;
            unlikelihood += with.unlikelihood;
            for (row, (with, without)) in with.kept.iter().zip(with.gradient.iter().zip(&without.gradient)) {
                gradient[*row] = with.iter().zip(without).map(|(a, b)| a - b).collect();
            }
        }

        // Theirs, and what the clamp took from it.
        let mut of_clamp = 0.0;
        let mut theirs = rows_of(&case["grads"]["loss_sum_wrt_logits"]);
        assert_eq!(theirs.len(), targets.len(), "{id}");
        let mut clamped = 0;
        for (row, ids) in candidates.iter().enumerate() {
            for of in (ids.iter()).filter_map(|&id| Clamped::of(&all[row], id as usize, number(&params["clamp_min"]))) {
                of_clamp += of.value;
                theirs[row]
                    .iter_mut()
                    .zip(&of.push)
                    .for_each(|(theirs, push)| *theirs += alpha * push);
                clamped += 1;
            }
        }
        let of = |name: &str| number(&outputs[name]);
        close(&format!("{id} likelihood"), tokens.nll, of("mle_sum"), golden.rtol);
        close(
            &format!("{id} unlikelihood"),
            unlikelihood,
            of("ul_sum") + of_clamp,
            golden.rtol,
        );
        close(id, sum, of("loss_sum") + alpha * of_clamp, golden.rtol);
        for (row, (ours, theirs)) in gradient.iter().zip(&theirs).enumerate() {
            assert_eq!(ours.len(), theirs.len(), "{id} row {row}");
            for (ours, theirs) in ours.iter().zip(theirs) {
                // Those of paddings are differences of whole gradients: what is left where they cancel is rounding.
                let bound = golden.rtol * theirs.abs() + 1e-14;
                assert!((ours - theirs).abs() <= bound, "{id} row {row}: {ours} is not {theirs}");
            }
        }
        match clamped {
            0 => compared += 1,
            _ => deviating += 1,
        }
    }
    (compared, deviating)
}

#[test]
fn golden_oracle_of_unlikelihood_by_hand() {
    // Logits (2, 1, 0, -1): p = (.6439, .2369, .0871, .0321). d/dz_k = p_k, d/dz_j = -p_k p_j / (1 - p_k).
    let tokens = Tokens {
        logits: vec![vec![2.0, 1.0, 0.0, -1.0]],
        targets: vec![0],
        labels: vec![0],
        example: vec![0],
        padded: vec![false],
        draws: None,
        marks: Vec::new(),
    };
    let ours = tokens.run(&Loss::Unlikelihood(Unlikelihood { alpha: 1.0 }));
    assert!((total(&ours.value) - 1.03258).abs() < 1e-5);
    let expected = [0.643914, -0.428358, -0.157584, -0.057972];
    assert!(ours.gradient[0].iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5));
    // The reference's clamp takes the whole push.
    let clamped = Clamped::of(&[2.0, 1.0, 0.0, -1.0], 0, 0.5).unwrap();
    assert!((clamped.value - (1.03258 + 0.5f64.ln())).abs() < 1e-5);
    assert!(clamped.push.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5));
    assert!(Clamped::of(&[2.0, 1.0, 0.0, -1.0], 0, 0.3).is_none());
}
