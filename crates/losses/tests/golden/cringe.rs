//! CRINGE token by token, and reduced over a batch.

use serde_json::Value;
use unsay_losses::token::{Cringe, Loss, TokenLoss};

use crate::files::{Golden, all_close, close, flags, floats, id, integers, number, rows_of, shape, term, total};
use crate::plain::numbers;
use crate::tokens::{Tokens, candidates, draw_for, log_sum_exp, paddings, sigmoid, softplus};

/// A case's tokens and, for each, the sampled token.
fn tokens_of(case: &Value, padding: &str, k: usize, example: Vec<i64>, labels: Vec<i8>) -> (Tokens, Vec<usize>) {
    let (inputs, outputs) = (&case["inputs"], &case["outputs"]);
    let targets = integers(inputs.get("targets").unwrap_or(&inputs["label_vec"]));
    let logits = rows_of(&inputs["logits"]);
    let places = integers(&outputs["sampled_topk_position"]);
    assert_eq!([logits.len(), places.len()], [targets.len(); 2], "{}", id(case));
    let (mut sampled, mut draws, mut sampled_logits) = (Vec::new(), Vec::new(), Vec::new());
    for ((row, &target), &place) in logits.iter().zip(&targets).zip(&places) {
        let (ids, probabilities) = candidates(row, target, k);
        sampled.push(ids[place as usize]);
        sampled_logits.push(row[ids[place as usize]]);
        draws.push(draw_for(&probabilities, place as usize, 0.5));
    }
    let theirs: Vec<usize> = integers(&outputs["sampled_token"])
        .iter()
        .map(|&x| x as usize)
        .collect();
    assert_eq!(sampled, theirs, "{}", id(case));
    let what = format!("{} sampled logit", id(case));
    all_close(&what, &sampled_logits, &floats(&outputs["sampled_logit"]), 1e-12);
    let padding = case["params"][padding].as_i64().unwrap();
    let tokens = Tokens {
        padded: paddings(&targets, padding),
        logits,
        targets,
        labels,
        example,
        draws: Some(draws),
        marks: Vec::new(),
    };
    (tokens, sampled)
}

/// What a token has from the formula, as ours and as the reference have it.
struct Token {
    ce: f64,
    contrast: f64,
    gradient: Vec<f64>,
    /// Part of the gradient of the contrast.
    of_contrast: Vec<f64>,
    /// Reason: the reference's two-way contrast inherits the padding id as a class to ignore, where class 0 is that the
    /// target is right and class 1 that the sampled token is. Ours keeps the contrast.
    ignored: bool,
}

/// The formula in plain floating point, right also where the reference has its quirk.
fn by_formula(loss: &Cringe, tokens: &Tokens, row: usize, sampled: usize, padding: i64) -> Token {
    let (z, y, label) = (&tokens.logits[row], tokens.targets[row] as usize, tokens.labels[row]);
    let mut token = Token {
        ce: 0.0,
        contrast: 0.0,
        gradient: vec![0.0; z.len()],
        of_contrast: vec![0.0; z.len()],
        ignored: padding == i64::from(label != 1),
    };
    if tokens.padded[row] {
        return token;
    }
    if trains_likelihood(loss, label) {
        token.ce = log_sum_exp(z) - z[y];
        token.gradient = z.iter().map(|x| (x - log_sum_exp(z)).exp()).collect();
        token.gradient[y] -= 1.0;
    }
    if trains_contrast(loss, label) {
        let sign = if label == 1 { -1.0 } else { 1.0 };
        token.contrast = softplus(sign * (z[y] - z[sampled]));
        let push = loss.alpha * sign * sigmoid(sign * (z[y] - z[sampled]));
        token.of_contrast[y] += push;
        token.of_contrast[sampled] -= if loss.detach_positives { 0.0 } else { push };
    }
    let both = token.gradient.iter().zip(&token.of_contrast);
    token.gradient = both.map(|(a, b)| a + b).collect();
    token
}

fn trains_likelihood(loss: &Cringe, label: i8) -> bool {
    label == -1 || label == 1 && loss.ce_on_positives
}

fn trains_contrast(loss: &Cringe, label: i8) -> bool {
    label == 0 || label == 1 && loss.contrast_on_positives
}

pub(crate) fn per_token(golden: &Golden) -> (usize, usize) {
    let (mut compared, mut deviating) = (0, 0);
    for case in &golden.cases {
        let (id, params, outputs) = (id(case), &case["params"], &case["outputs"]);
        let flag = |name: &str| params[name].as_bool().unwrap();
        let k = params["num_pos_predictions"].as_u64().unwrap() as usize;
        let padding = params["ignore_index"].as_i64().unwrap();
        let loss = Cringe {
            detach_positives: flag("detach_positives_during_ct"),
            contrast_on_positives: flag("train_ct_on_positive_examples"),
            ce_on_positives: flag("train_ce_on_positive_examples"),
            ..Cringe::new(number(&params["ct_loss_weight"]), k)
        };
        let n = integers(&case["inputs"]["targets"]).len();
        // Each token its own example, so that the values per example are values per token.
        let labels: Vec<i8> = match &case["inputs"]["classifier_labels"] {
            Value::Null => vec![-1; n],
            labels => integers(labels).iter().map(|&l| l as i8).collect(),
        };
        let (tokens, sampled) = tokens_of(case, "ignore_index", k, (0..n as i64).collect(), labels.clone());
        let ours = tokens.run(&Loss::Cringe(loss));
        let count = loss.rows_trained(&ours.counts);
        let per_token: Vec<f64> = numbers(&ours.value.per_example).iter().map(|x| x * count).collect();

        let by_formula: Vec<Token> = (0..n)
            .map(|row| by_formula(&loss, &tokens, row, sampled[row], padding))
            .collect();
        let (mut same, mut theirs) = (Vec::new(), Vec::new());
        let (mut ce, mut contrast) = (Vec::new(), Vec::new());
        for (row, token) in by_formula.iter().enumerate() {
            let own = token.ce + loss.alpha * token.contrast;
            close(
                &format!("{id} token {row} by formula"),
                per_token[row],
                own,
                golden.rtol,
            );
            let slopes: Vec<f64> = token.gradient.iter().map(|g| g / count).collect();
            let what = format!("{id} gradient of token {row} by formula");
            all_close(&what, &ours.gradient[row], &slopes, golden.rtol);
            // What the reference has of it.
            let lost = if token.ignored { token.contrast } else { 0.0 };
            same.push(token.contrast.abs() < 1e-300 || !token.ignored);
            theirs.push(per_token[row] - loss.alpha * lost);
            ce.push(token.ce);
            contrast.push(token.contrast - lost);
        }
        let each = |name: &str| floats(&outputs[name]);
        all_close(&format!("{id} token"), &theirs, &each("loss_per_token"), golden.rtol);
        all_close(&format!("{id} likelihood"), &ce, &each("ce_per_token"), golden.rtol);
        all_close(&format!("{id} contrast"), &contrast, &each("ct_per_token"), golden.rtol);
        close(
            &format!("{id} tokens"),
            count,
            number(&outputs["token_count"]),
            golden.rtol,
        );
        let sum = theirs.iter().sum::<f64>();
        close(id, sum / count, number(&outputs["total"]), golden.rtol);
        for (name, trains) in [
            ("ce_mask", trains_likelihood as fn(&Cringe, i8) -> bool),
            ("ct_mask", trains_contrast),
        ] {
            let own: Vec<bool> = labels.iter().map(|&label| trains(&loss, label)).collect();
            assert_eq!(own, flags(&outputs[name]), "{id} {name}");
        }
        let gradient = rows_of(&case["grads"]["total_wrt_logits"]);
        assert_eq!(gradient.len(), n, "{id}");
        for (row, theirs) in gradient.iter().enumerate() {
            let token = &by_formula[row];
            let lost = if token.ignored { 1.0 / count } else { 0.0 };
            let whole: Vec<f64> = theirs
                .iter()
                .zip(&token.of_contrast)
                .map(|(g, own)| g + lost * own)
                .collect();
            let what = format!("{id} gradient of token {row}");
            all_close(&what, &ours.gradient[row], &whole, golden.rtol);
        }
        same_candidates(golden, case, &tokens, &ours.stats, k);
        if same.iter().all(|&same| same) {
            close(id, total(&ours.value), number(&outputs["total"]), golden.rtol);
            compared += 1;
        } else {
            assert!(total(&ours.value) > number(&outputs["total"]), "{id}");
            deviating += 1;
        }
    }
    (compared, deviating)
}

/// Compares the largest logits, and which of them our draws pick: each in an interval as wide as its probability.
fn same_candidates(golden: &Golden, case: &Value, tokens: &Tokens, stats: &unsay_losses::TokenStats, k: usize) {
    let (id, outputs) = (id(case), &case["outputs"]);
    let (ids, values) = (rows_of(&outputs["topk_indices"]), rows_of(&outputs["topk_values"]));
    let (theirs, within) = (
        rows_of(&outputs["sampling_probs"]),
        flags(&outputs["target_in_topk_plus1"]),
    );
    let n = tokens.targets.len();
    assert_eq!([ids.len(), values.len(), theirs.len(), within.len()], [n; 4], "{id}");
    for row in 0..n {
        let (z, target) = (&tokens.logits[row], tokens.targets[row]);
        let (own, probabilities) = candidates(z, target, k);
        let what = format!("{id} candidates of token {row}");
        all_close(
            &what,
            &own.iter().map(|&id| id as f64).collect::<Vec<_>>(),
            &ids[row],
            1e-12,
        );
        all_close(
            &what,
            &own.iter().map(|&id| z[id]).collect::<Vec<_>>(),
            &values[row],
            1e-12,
        );
        all_close(&what, &probabilities, &theirs[row], golden.rtol);
        assert_eq!(own.contains(&(target as usize)), within[row], "{what}");
    }
    // Those of the op, for the rows that it has.
    let kept = tokens.kept();
    let of = |rows: &[Vec<f64>]| kept.iter().flat_map(|&row| rows[row].clone()).collect::<Vec<_>>();
    all_close(id, &numbers(stats.top_ids.as_ref().unwrap()), &of(&ids), 1e-12);
    all_close(id, &numbers(stats.top_logits.as_ref().unwrap()), &of(&values), 1e-12);

    // A negative token for both ends of the interval of each candidate.
    let (mut ends, mut draws, mut expected) = (Vec::new(), Vec::new(), Vec::new());
    for &row in &kept {
        for place in (0..=k).filter(|&place| theirs[row][place] > 1e-9) {
            for share in [1e-6, 1.0 - 1e-6] {
                let (z, y) = (&tokens.logits[row], tokens.targets[row] as usize);
                ends.push(row);
                draws.push(draw_for(&theirs[row], place, share));
                expected.push(softplus(z[y] - z[ids[row][place] as usize]));
            }
        }
    }
    let ends = Tokens {
        logits: ends.iter().map(|&row| tokens.logits[row].clone()).collect(),
        targets: ends.iter().map(|&row| tokens.targets[row]).collect(),
        labels: vec![0; ends.len()],
        example: (0..ends.len() as i64).collect(),
        padded: vec![false; ends.len()],
        draws: Some(draws),
        marks: Vec::new(),
    };
    let picked = ends.run(&Loss::Cringe(Cringe::new(1.0, k)));
    let n = expected.len() as f64;
    let picked: Vec<f64> = numbers(&picked.value.per_example).iter().map(|x| x * n).collect();
    all_close(&format!("{id} picked"), &picked, &expected, golden.rtol);
}

pub(crate) fn reduced(golden: &Golden) -> (usize, usize) {
    for case in &golden.cases {
        let (id, params, outputs) = (id(case), &case["params"], &case["outputs"]);
        let alpha = number(&params["ct_loss_weight"]);
        let k = params["num_pos_predictions"].as_u64().unwrap() as usize;
        let loss = Cringe::new(alpha, k);
        let classes = integers(&case["inputs"]["classifier_label"]);
        let table = shape(&case["inputs"]["label_vec"]);
        assert_eq!(table[0], classes.len(), "{id}");
        let example: Vec<i64> = (0..table[0] * table[1]).map(|i| (i / table[1]) as i64).collect();
        let labels = example.iter().map(|&e| classes[e as usize] as i8).collect();
        let (tokens, _) = tokens_of(case, "null_idx", k, example, labels);
        let ours = tokens.run(&Loss::Cringe(loss));

        close(id, total(&ours.value), number(&outputs["loss"]), golden.rtol);
        let gradient = floats(&case["grads"]["loss_wrt_logits"]);
        all_close(
            &format!("{id} gradient"),
            &ours.gradient.concat(),
            &gradient,
            golden.rtol,
        );

        // The reference logs each example's own mean; ours are shares of the total. An example has one of the two parts.
        let metrics = |name: &str| floats(&outputs["metrics"][name]);
        let n: Vec<f64> = (0..classes.len())
            .map(|e| {
                tokens
                    .kept()
                    .iter()
                    .filter(|&&row| tokens.example[row] == e as i64)
                    .count() as f64
            })
            .collect();
        all_close(
            &format!("{id} tokens"),
            &n,
            &metrics("total_target_tokens"),
            golden.rtol,
        );
        let count = loss.rows_trained(&ours.counts);
        let shares = numbers(&ours.value.per_example);
        let means: Vec<f64> = shares.iter().zip(&n).map(|(share, n)| share * count / n).collect();
        all_close(&format!("{id} example"), &means, &metrics("loss"), golden.rtol);
        for (part, trains, weight) in [("ce", false, 1.0), ("ct", true, alpha)] {
            let own = |e: usize| trains == (classes[e] == 0);
            let tokens: Vec<f64> = (0..n.len()).map(|e| if own(e) { n[e] } else { 0.0 }).collect();
            let what = format!("{id} {part}");
            all_close(&what, &tokens, &metrics(&format!("{part}_target_tokens")), golden.rtol);
            let theirs = metrics(&format!("{part}_loss"));
            assert_eq!(theirs.len(), n.len(), "{what}");
            assert!((0..n.len()).all(|e| theirs[e].is_nan() != own(e)), "{what}");
            let mut sum = 0.0;
            for e in (0..n.len()).filter(|&e| own(e)) {
                close(&what, means[e], weight * theirs[e], golden.rtol);
                sum += theirs[e] * n[e];
            }
            let whole = tokens.iter().sum::<f64>();
            if whole > 0.0 {
                close(
                    &what,
                    term(&ours.value, &format!("{part}_loss")),
                    sum / whole,
                    golden.rtol,
                );
            }
        }
    }
    (golden.cases.len(), 0)
}

#[test]
fn golden_oracle_of_cringe_by_hand() {
    // Logits (2, 1, 0, -1): p = (.6439, .2369, .0871, .0321).
    for (target, sampled, value, weight) in [(0usize, 1, 1.31326, 0.73106), (3, 0, 0.048587, 0.047426)] {
        let tokens = Tokens {
            logits: vec![vec![2.0, 1.0, 0.0, -1.0]],
            targets: vec![target as i64],
            labels: vec![0],
            example: vec![0],
            padded: vec![false],
            draws: Some(vec![0.3]),
            marks: Vec::new(),
        };
        let ours = tokens.run(&Loss::Cringe(Cringe::new(1.0, 1)));
        assert!((total(&ours.value) - value).abs() < 1e-5);
        let mut expected = [0.0; 4];
        expected[target] = weight;
        expected[sampled] = -weight;
        assert!(ours.gradient[0].iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5));
    }
}
