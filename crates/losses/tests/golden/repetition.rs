//! Token losses against repetition: candidates from the context, weights from repeated n-grams.

use serde_json::Value;
use tch::{Device, Kind, Tensor};
use unsay_losses::token::{Loss, Marks, TokenLoss, UnlikelihoodContext, UnlikelihoodRepetition};
use unsay_losses::{TokenCounts, TokenOp, TokenRows};

use crate::files::{cases, close, committed, counted, floats, integers, rows_of};
use crate::plain::numbers;

/// The case of `unlikelihood_token_fairseq` in which the reference's clamp of `1 - p` at 1e-5 flattens the loss of one
/// candidate: row and candidate.
const CLAMPED: (&str, usize, usize) = ("saturated", 2, 5);

/// Tokens of one label with what was read from the text, one row per token.
struct Tokens {
    logits: Vec<Vec<f64>>,
    targets: Vec<i64>,
    label: i8,
    marks: Vec<Marks>,
}

/// Value, named parts and gradient with respect to the logits.
struct Ours {
    total: f64,
    terms: Vec<(&'static str, f64)>,
    gradient: Vec<Vec<f64>>,
}

impl Tokens {
    fn run(&self, loss: &Loss) -> Ours {
        let (n, v) = (self.targets.len(), self.logits[0].len());
        let flat: Vec<f64> = self.logits.concat();
        let logits = Tensor::from_slice(&flat).view([-1, v as i64]).set_requires_grad(true);
        let identity = Tensor::eye(v as i64, (Kind::Double, Device::Cpu));
        let rows = TokenRows::new(&vec![0; n], &vec![false; n], &[self.label], Device::Cpu)
            .unwrap()
            .with_marks(&self.marks)
            .unwrap();
        let op = TokenOp::new(&logits, &identity, &Tensor::from_slice(&self.targets), &loss.needs()).unwrap();
        let op = match &rows.candidates {
            Some(ids) => op.with_candidates(ids).unwrap(),
            None => op,
        };
        let stats = op.forward().unwrap();
        let counts = TokenCounts::of(&rows).unwrap();
        let value = loss.evaluate(&stats, &rows, &counts, None).unwrap();
        value.total.backward();
        op.surrogate(&stats).unwrap().backward();
        Ours {
            total: value.total.double_value(&[]),
            terms: value
                .terms
                .iter()
                .map(|(name, t)| (*name, t.double_value(&[])))
                .collect(),
            gradient: numbers(&logits.grad()).chunks(v).map(<[f64]>::to_vec).collect(),
        }
    }
}

/// All rows of logits, in order.
fn logits(case: &Value) -> Vec<Vec<f64>> {
    let tokens = case["inputs"]["logits"].as_array().unwrap().iter();
    tokens.flat_map(|row| row.as_array().unwrap()).map(floats).collect()
}

fn sequences(value: &Value) -> Vec<Vec<i64>> {
    value.as_array().unwrap().iter().map(integers).collect()
}

#[test]
fn golden_unlikelihood_of_the_context_equals_the_reference_given_its_candidates() {
    let (mut compared, mut deviating) = (0, 0);
    for case in cases("unlikelihood_token_fairseq") {
        let id = case["id"].as_str().unwrap();
        let alpha = case["params"]["rank_alpha"].as_f64().unwrap();
        let padding = case["params"]["padding_idx"].as_i64().unwrap();
        let targets = integers(&case["inputs"]["targets"]);
        let all = logits(&case);
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
        let part = |padded: bool, alpha: f64| {
            let kept: Vec<usize> = (0..targets.len())
                .filter(|&i| (targets[i] == padding) == padded)
                .collect();
            let tokens = Tokens {
                logits: kept.iter().map(|&i| all[i].clone()).collect(),
                targets: kept.iter().map(|&i| targets[i]).collect(),
                label: 1,
                marks: vec![Marks {
                    weights: None,
                    candidates: Some(kept.iter().map(|&i| candidates[i].clone()).collect()),
                }],
            };
            let loss = Loss::UnlikelihoodContext(UnlikelihoodContext { alpha, ..ours });
            (!kept.is_empty()).then(|| (kept.len() as f64, tokens.run(&loss), kept))
        };
        let (n, tokens, kept) = part(false, alpha).unwrap();
        close(id, n, case["outputs"]["sample_size"].as_f64().unwrap());
        let mut total = n * tokens.total;
        let (mut ce, mut ul) = (n * tokens.terms[0].1, n * tokens.terms[1].1);
        let mut gradient = vec![vec![0.0; all[0].len()]; targets.len()];
        for (row, ours) in kept.iter().zip(&tokens.gradient) {
            gradient[*row] = ours.iter().map(|g| g * n).collect();
        }
        if let (Some((n, with, kept)), Some((_, without, _))) = (part(true, alpha), part(true, 0.0)) {
            total += n * (with.total - without.total);
            ul += n * with.terms[1].1;
            for (row, (with, without)) in kept.iter().zip(with.gradient.iter().zip(&without.gradient)) {
                gradient[*row] = with.iter().zip(without).map(|(a, b)| n * (a - b)).collect();
            }
        }
        let theirs = |name: &str| case["outputs"][name].as_f64().unwrap();
        let expected = rows_of(&case["grads"]["loss_sum_wrt_logits"], all[0].len());
        ce -= theirs("mle_sum");
        assert!(ce.abs() < 1e-9 * theirs("mle_sum"), "{id}: likelihood is off by {ce}");
        let clamped = |row: usize| id == CLAMPED.0 && row == CLAMPED.1;
        let mut rows = 0;
        for (row, (ours, theirs)) in gradient.iter().zip(&expected).enumerate() {
            if clamped(row) {
                continue;
            }
            for (ours, theirs) in ours.iter().zip(theirs) {
                // Differences of whole gradients for paddings: absolute where they cancel.
                assert!(
                    (ours - theirs).abs() < 1e-9 * theirs.abs() + 1e-14,
                    "{id} row {row}: {ours} {theirs}"
                );
            }
            rows += 1;
        }
        if id != CLAMPED.0 {
            assert_eq!(rows, targets.len());
            close(id, total, theirs("loss_sum"));
            close(id, ul, theirs("ul_sum"));
            compared += 1;
            continue;
        }
        // Reason: the candidate's logit leads by 50, so that `1 - p` is clamped: the reference's value is -ln 1e-5 and
        // its push 0. Ours is exact: `log(1 - p)` from the other logits, and the full push.
        let (_, row, candidate) = CLAMPED;
        let z = &all[row];
        let others: f64 = (0..z.len()).filter(|&v| v != candidate).map(|v| z[v].exp()).sum();
        let exact = (others + z[candidate].exp()).ln() - others.ln();
        close(id, ul, theirs("ul_sum") + exact + 1e-5f64.ln());
        close(id, total, theirs("loss_sum") + alpha * (exact + 1e-5f64.ln()));
        for (v, (ours, theirs)) in gradient[row].iter().zip(&expected[row]).enumerate() {
            let push = if v == candidate { 1.0 } else { -z[v].exp() / others };
            close(&format!("{id} push on token {v}"), *ours, theirs + alpha * push);
        }
        deviating += 1;
    }
    counted("unlikelihood_token_fairseq", (compared, deviating), (3, 1));
}

/// Own completions of a case as negatives, with the weights that the loss gives them.
fn repetition(case: &Value, texts: &[(Vec<i64>, Vec<i64>)], loss: UnlikelihoodRepetition) -> (Vec<Marks>, Ours, usize) {
    let marks: Vec<Marks> = texts
        .iter()
        .map(|(prompt, completion)| loss.marks(prompt, completion).unwrap())
        .collect();
    // Rows past the end of a completion are paddings.
    let width = case["inputs"]["logits"][0].as_array().unwrap().len();
    let all = logits(case);
    let kept: Vec<usize> = (texts.iter().enumerate())
        .flat_map(|(i, (_, completion))| (0..completion.len()).map(move |t| i * width + t))
        .collect();
    let tokens = Tokens {
        logits: kept.iter().map(|&i| all[i].clone()).collect(),
        targets: texts.iter().flat_map(|(_, completion)| completion.clone()).collect(),
        label: 0,
        marks,
    };
    let mut ours = tokens.run(&Loss::UnlikelihoodRepetition(loss));
    let mut gradient = vec![vec![0.0; all[0].len()]; all.len()];
    for (row, values) in kept.into_iter().zip(ours.gradient) {
        gradient[row] = values;
    }
    ours.gradient = gradient;
    (tokens.marks, ours, width)
}

fn same_as_the_reference(case: &Value, ours: &Ours) {
    let id = case["id"].as_str().unwrap();
    close(id, ours.total, case["outputs"]["loss"].as_f64().unwrap());
    let theirs = rows_of(&case["grads"]["loss_wrt_logits"], ours.gradient[0].len());
    assert_eq!(ours.gradient.len(), theirs.len());
    for (ours, theirs) in ours.gradient.iter().flatten().zip(theirs.iter().flatten()) {
        close(&format!("{id} gradient"), *ours, *theirs);
    }
}

#[test]
fn golden_unlikelihood_of_repetition_equals_the_dialogue_code() {
    let (mut compared, mut repeating) = (0, 0);
    for case in cases("unlikelihood_repetition_parlai") {
        let n = case["params"]["n"].as_u64().unwrap() as usize;
        let beta = case["params"]["ctxt_beta"].as_f64().unwrap();
        let loss = UnlikelihoodRepetition::parlai(1.0, n, beta);
        let completions = sequences(&case["inputs"]["generations_with_bos"]);
        let prompts = sequences(&case["inputs"]["context"]);
        let texts = completions.iter().zip(&prompts);
        let texts: Vec<_> = texts.map(|(c, p)| (p.clone(), c[1..].to_vec())).collect();
        let (_, ours, _) = repetition(&case, &texts, loss);
        same_as_the_reference(&case, &ours);
        repeating += usize::from(ours.total > 0.0);
        compared += 1;
    }
    counted("unlikelihood_repetition_parlai", (compared, 0), (4, 0));
    assert!(repeating > 0 && (repeating == 3 || !committed()));
}

#[test]
fn golden_unlikelihood_of_repetition_equals_the_original_code() {
    let (mut compared, mut repeating) = (0, 0);
    for case in cases("unlikelihood_sequence_fairseq") {
        let n = case["params"]["n"].as_u64().unwrap() as usize;
        let loss = UnlikelihoodRepetition::original(1.0, n);
        // A prompt that has everything: the original does not look at it.
        let completions = sequences(&case["inputs"]["tokens"]);
        let texts: Vec<_> = completions.into_iter().map(|c| (c.clone(), c)).collect();
        let (marks, ours, width) = repetition(&case, &texts, loss);
        same_as_the_reference(&case, &ours);
        let mask = rows_of(&case["outputs"]["mask"], width);
        for (marks, mask) in marks.iter().zip(&mask) {
            for (ours, theirs) in marks.weights.as_ref().unwrap().iter().zip(mask) {
                close("mask", *ours, *theirs);
            }
        }
        repeating += usize::from(ours.total > 0.0);
        // With the last n-gram, there is no less to push down, and in the case named for it there is more.
        let whole = UnlikelihoodRepetition {
            last_ngram: true,
            ..loss
        };
        let (_, whole, _) = repetition(&case, &texts, whole);
        assert!(whole.total >= ours.total);
        if case["id"] == "n4_last_ngram_not_checked" {
            assert!(whole.total > 0.01 && ours.total.abs() < 1e-15);
        }
        compared += 1;
    }
    counted("unlikelihood_sequence_fairseq", (compared, 0), (3, 0));
    assert!(repeating > 0 && (repeating == 2 || !committed()));
}
