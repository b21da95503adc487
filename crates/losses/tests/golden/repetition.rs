//! Unlikelihood of own completions where n-grams come again.

use serde_json::Value;
use unsay_losses::token::TokenLoss;
use unsay_losses::token::{Loss, Marks, UnlikelihoodRepetition};

use crate::files::{Golden, all_close, close, floats, id, integers, number, rows_of, shape, total};
use crate::tokens::{Clamped, Tokens};

/// What our side gives for own completions as negatives.
struct Ours {
    total: f64,
    /// With zeros past the end of a completion.
    gradient: Vec<Vec<f64>>,
    weights: Vec<Vec<f64>>,
}

fn sequences(value: &Value) -> Vec<Vec<i64>> {
    value.as_array().unwrap().iter().map(integers).collect()
}

fn run(case: &Value, texts: &[(Vec<i64>, Vec<i64>)], loss: UnlikelihoodRepetition) -> Ours {
    let marks: Vec<Marks> = (texts.iter())
        .map(|(prompt, completion)| loss.marks(prompt, completion).unwrap())
        .collect();
    let table = shape(&case["inputs"]["logits"]);
    let all = rows_of(&case["inputs"]["logits"]);
    assert_eq!(texts.len(), table[0], "{}", id(case));
    let longest = texts.iter().map(|(_, completion)| completion.len()).max();
    assert_eq!(longest, Some(table[1]), "{}", id(case));
    let rows = texts.iter().enumerate().flat_map(|(e, (_, completion))| {
        let width = table[1];
        let row = move |t: usize| (e * width + t, e as i64, completion[t]);
        (0..completion.len()).map(row)
    });
    let rows: Vec<(usize, i64, i64)> = rows.collect();
    let weights: Vec<Vec<f64>> = marks.iter().map(|marks| marks.weights.clone().unwrap()).collect();
    let tokens = Tokens {
        logits: rows.iter().map(|&(at, ..)| all[at].clone()).collect(),
        targets: rows.iter().map(|&(_, _, target)| target).collect(),
        labels: vec![0; rows.len()],
        example: rows.iter().map(|&(_, e, _)| e).collect(),
        padded: vec![false; rows.len()],
        draws: None,
        marks,
    };
    // Recognised, and not compared with what is right: no case has one.
    let clamp = number(&case["params"]["clamp_min"]);
    for (row, weight) in weights.iter().flatten().enumerate() {
        let clamped = Clamped::of(&tokens.logits[row], tokens.targets[row] as usize, clamp);
        assert!(
            *weight <= 0.0 || clamped.is_none(),
            "{} row {row}: 1 - p is clamped",
            id(case)
        );
    }
    let ours = tokens.run(&Loss::UnlikelihoodRepetition(loss));
    let mut gradient = vec![vec![0.0; all[0].len()]; all.len()];
    for ((at, ..), slopes) in rows.into_iter().zip(ours.gradient) {
        gradient[at] = slopes;
    }
    Ours {
        total: total(&ours.value),
        gradient,
        weights,
    }
}

fn compare(golden: &Golden, case: &Value, ours: &Ours) {
    let what = format!("{} gradient", id(case));
    close(id(case), ours.total, number(&case["outputs"]["loss"]), golden.rtol);
    let theirs = floats(&case["grads"]["loss_wrt_logits"]);
    all_close(&what, &ours.gradient.concat(), &theirs, golden.rtol);
}

pub(crate) fn parlai(golden: &Golden) -> (usize, usize) {
    let mut repeating = 0;
    for case in &golden.cases {
        let n = case["params"]["n"].as_u64().unwrap() as usize;
        let loss = UnlikelihoodRepetition::parlai(1.0, n, number(&case["params"]["ctxt_beta"]));
        let completions = sequences(&case["inputs"]["generations_with_bos"]);
        let prompts = sequences(&case["inputs"]["context"]);
        assert_eq!(prompts.len(), completions.len(), "{}", id(case));
        let texts: Vec<_> = completions
            .iter()
            .zip(prompts)
            .map(|(c, p)| (p, c[1..].to_vec()))
            .collect();
        let ours = run(case, &texts, loss);
        compare(golden, case, &ours);
        repeating += usize::from(ours.total > 0.0);
    }
    assert!(repeating == 3 || !golden.committed);
    (golden.cases.len(), 0)
}

pub(crate) fn fairseq(golden: &Golden) -> (usize, usize) {
    let (mut repeating, mut more) = (0, 0);
    for case in &golden.cases {
        let n = case["params"]["n"].as_u64().unwrap() as usize;
        let loss = UnlikelihoodRepetition::original(1.0, n);
        // A prompt that has everything: the original does not look at it.
        let completions = sequences(&case["inputs"]["tokens"]);
        let texts: Vec<_> = completions.into_iter().map(|c| (c.clone(), c)).collect();
        let ours = run(case, &texts, loss);
        compare(golden, case, &ours);
        let mask = floats(&case["outputs"]["mask"]);
        all_close(
            &format!("{} mask", id(case)),
            &ours.weights.concat(),
            &mask,
            golden.rtol,
        );
        repeating += usize::from(ours.total > 0.0);
        // The original does not look at the last n-gram. With it there is no less to push down.
        let whole = UnlikelihoodRepetition {
            last_ngram: true,
            ..loss
        };
        let whole = run(case, &texts, whole);
        let pairs = whole.weights.concat().into_iter().zip(ours.weights.concat());
        assert!(pairs.into_iter().all(|(whole, own)| whole >= own), "{}", id(case));
        more += usize::from(whole.total > ours.total + 0.01 && ours.total.abs() < 1e-15);
    }
    assert!((repeating, more) == (2, 1) || !golden.committed);
    (golden.cases.len(), 0)
}
