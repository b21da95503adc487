//! Advantages of completions in groups.

use serde_json::Value;
use unsay_losses::policy::kl::{KlClamp, KlEstimator};
use unsay_losses::policy::{
    Aggregate, Batch, Combination, Deviation, Loss, Normalisation, Objective, Rloo, Scale, batch_normalised,
    group_normalised, leave_one_out,
};

use crate::files::{Golden, all_close, close, floats, id, integers, number, rows_of, shape, term, total};
use crate::plain::numbers;
use crate::table::{Table, leaf, run, stats};

/// Compares the advantages of a case of `grpo`.
pub(crate) fn normalised(golden: &Golden, case: &Value) {
    let (id, params) = (id(case), &case["params"]);
    let weights = floats(&params["reward_weights"]);
    let per_completion = rows_of(&case["inputs"]["rewards_per_func"]);
    assert!(per_completion.iter().all(|row| row.len() == weights.len()), "{id}");
    let lists = (0..weights.len()).map(|f| per_completion.iter().map(|row| row[f]).collect());
    let lists: Vec<Vec<f64>> = lists.collect();
    let lists: Vec<&[f64]> = lists.iter().map(Vec::as_slice).collect();
    let how = Normalisation {
        scale: match params["scale_rewards"].as_str().unwrap() {
            "group" => Scale::Group,
            "batch" => Scale::Batch,
            "none" => Scale::None,
            other => panic!("{id}: an unknown scale `{other}`"),
        },
        eps: 1e-4,
        deviation: Deviation::Sample,
        combination: match params["aggregation"].as_str().unwrap() {
            "sum_then_normalize" => Combination::SumThenNormalise,
            "normalize_then_sum" => Combination::NormaliseThenSum,
            other => panic!("{id}: an unknown aggregation `{other}`"),
        },
    };
    let group = params["num_generations"].as_u64().unwrap() as usize;
    let ours = group_normalised(&lists, &weights, group, &how).unwrap();
    let theirs = floats(&case["outputs"]["advantages"]);
    assert_eq!(ours.len(), theirs.len(), "{id}");
    for (at, (ours, theirs)) in ours.chunks(group).zip(theirs.chunks(group)).enumerate() {
        let rewards = &per_completion[at * group..(at + 1) * group];
        if rewards.iter().any(|row| row != &rewards[0]) {
            all_close(&format!("{id} group {at}"), ours, theirs, golden.rtol);
            continue;
        }
        // Reason: of equal rewards both sides are a rounding error over 1e-4.
        let largest = rewards[0].iter().fold(1.0, |largest: f64, x| largest.max(x.abs()));
        let rounding = |list: &[f64]| list.iter().all(|x| x.abs() < 1e-11 * largest);
        assert!(
            rounding(ours) && rounding(theirs),
            "{id} group {at}: {ours:?} and {theirs:?}"
        );
    }
}

/// Advantages of groups of any size, told by an index per completion.
fn by_index(index: &[i64], scores: &[f64], of_group: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    assert_eq!(index.len(), scores.len(), "an index for each completion");
    let mut advantages = vec![f64::NAN; scores.len()];
    for (at, &first) in index.iter().enumerate() {
        if index[..at].contains(&first) {
            continue;
        }
        let own: Vec<usize> = (at..index.len()).filter(|&i| index[i] == first).collect();
        let scores: Vec<f64> = own.iter().map(|&i| scores[i]).collect();
        own.into_iter()
            .zip(of_group(&scores))
            .for_each(|(i, a)| advantages[i] = a);
    }
    advantages
}

/// Whether a log-probability is one of a token that counts: masked ones are 1 in the older layout.
fn unmasked(logp: f64) -> bool {
    (logp - 1.0).abs() > 1e-12
}

/// Where sample `s` of prompt `p` lies, given where it lies here, `p K + s`.
fn places(case: &Value, group: usize, n: usize) -> Vec<usize> {
    match case["params"]["layout"].as_str() {
        Some("sample s of prompt p is at index s*P+p") => {
            (0..n).map(|at| (at % group) * (n / group) + at / group).collect()
        }
        Some("sample s of prompt p is at index p*K+s") => (0..n).collect(),
        other => panic!("{}: an unknown layout {other:?}", id(case)),
    }
}

/// Leave-one-out advantages in the layout of the case.
fn left_out(case: &Value, rewards: &[f64], group: usize) -> Vec<f64> {
    let places = places(case, group, rewards.len());
    let ordered: Vec<f64> = places.iter().map(|&at| rewards[at]).collect();
    let mut advantages = vec![f64::NAN; rewards.len()];
    let ours = leave_one_out(&ordered, group).unwrap();
    places
        .iter()
        .zip(ours)
        .for_each(|(&at, advantage)| advantages[at] = advantage);
    advantages
}

/// Rewards less the penalty of the whole completion, and their advantages.
fn with_penalty(golden: &Golden, case: &Value) {
    let (id, inputs, outputs, params) = (id(case), &case["inputs"], &case["outputs"], &case["params"]);
    let table = Table::new(&inputs["logprobs"], unmasked);
    let (logp, reference) = (table.read(&inputs["logprobs"]), table.read(&inputs["ref_logprobs"]));
    let kl = KlEstimator::K1
        .per_token(&logp, &reference, &KlClamp::default())
        .unwrap();
    let kl = numbers(&table.rows().sums(&kl).unwrap());
    let scores = floats(&inputs["scores"]);
    assert_eq!(scores.len(), kl.len(), "{id}");
    let coefficient = number(&params["kl_coef"]);
    let rewards: Vec<f64> = scores
        .iter()
        .zip(kl)
        .map(|(score, kl)| score - coefficient * kl)
        .collect();
    all_close(
        &format!("{id} reward"),
        &rewards,
        &floats(&outputs["rlhf_reward"]),
        golden.rtol,
    );
    let group = params["rloo_k"].as_u64().unwrap() as usize;
    all_close(
        id,
        &left_out(case, &rewards, group),
        &floats(&outputs["advantages"]),
        golden.rtol,
    );
}

/// The loss of whole completions.
fn loss(golden: &Golden, case: &Value) {
    let (id, inputs, outputs, params) = (id(case), &case["inputs"], &case["outputs"], &case["params"]);
    let table = match inputs.get("completion_mask") {
        Some(mask) => Table::of_mask(mask),
        None => Table::new(&inputs["old_logprobs"], unmasked),
    };
    // One reference keeps sums of the old log-probabilities: any tokens with these sums will do.
    let old = match inputs.get("old_seq_logps") {
        Some(sums) => {
            let sums = floats(sums);
            assert_eq!(sums.len(), table.lengths.len(), "{id}");
            let means = sums.iter().zip(&table.lengths).map(|(sum, &n)| sum / n as f64);
            table.spread(&means.collect::<Vec<_>>())
        }
        None => table.read(&inputs["old_logprobs"]),
    };
    let clip = params["cliprange"]
        .as_f64()
        .unwrap_or_else(|| number(&params["epsilon"]));
    let logp = leaf(&inputs["new_logprobs"]);
    let rows = table.rows();
    let batch = Batch {
        stats: &stats(&table.pick(&logp)),
        old: &old,
        advantage: &table.spread(&floats(&inputs["advantages"])),
        reference: None,
        rows: &rows,
    };
    let loss = Loss::Rloo(Rloo {
        clip_low: clip,
        clip_high: clip,
    });
    let ours = run(&Objective::new(loss, Aggregate::SequenceMean), &batch);
    close(id, total(&ours), number(&outputs["loss"]), golden.rtol);
    table.same(id, &logp.grad(), &case["grads"]["loss_wrt_new_logprobs"], golden.rtol);
    if let Some(theirs) = outputs.get("ratio") {
        let theirs = floats(theirs);
        let own = numbers(&rows.sums(&(&batch.stats.logp - batch.old)).unwrap().exp());
        all_close(&format!("{id} ratios"), &own, &theirs, golden.rtol);
        // Ours on average over tokens.
        let sum: f64 = theirs
            .iter()
            .zip(&table.lengths)
            .map(|(ratio, &n)| ratio * n as f64)
            .sum();
        close(
            &format!("{id} ratio"),
            term(&ours, "ratio"),
            sum / rows.n_rows() as f64,
            golden.rtol,
        );
    }
}

/// Advantages of groups by index, that stand at each token.
fn at_each_token(golden: &Golden, case: &Value) {
    let (id, inputs, params) = (id(case), &case["inputs"], &case["params"]);
    let (index, scores) = (integers(&inputs["index"]), floats(&inputs["scores"]));
    let advantages = by_index(&index, &scores, |scores| match params["norm_by_std"].as_bool() {
        None => leave_one_out(scores, scores.len()).unwrap(),
        Some(by_std) => {
            let how = Normalisation {
                scale: if by_std { Scale::Group } else { Scale::None },
                eps: params["epsilon"].as_f64().unwrap_or(1e-6),
                deviation: Deviation::Sample,
                combination: Combination::SumThenNormalise,
            };
            group_normalised(&[scores], &[1.0], scores.len(), &how).unwrap()
        }
    });
    let theirs = rows_of(&case["outputs"]["advantages"]);
    assert_eq!(shape(&case["outputs"]["advantages"]), shape(&inputs["mask"]), "{id}");
    assert_eq!(theirs.len(), advantages.len(), "{id}");
    for (at, valid) in rows_of(&inputs["mask"]).iter().enumerate() {
        let ours: Vec<f64> = valid.iter().map(|valid| advantages[at] * valid).collect();
        all_close(&format!("{id} completion {at}"), &ours, &theirs[at], golden.rtol);
    }
}

pub(crate) fn rloo(golden: &Golden) -> (usize, usize) {
    for case in &golden.cases {
        let (id, inputs, params) = (id(case), &case["inputs"], &case["params"]);
        if inputs.get("new_logprobs").is_some() {
            loss(golden, case);
        } else if inputs.get("index").is_some() {
            at_each_token(golden, case);
        } else if inputs.get("ref_logprobs").is_some() {
            with_penalty(golden, case);
        } else {
            assert!(
                inputs.get("rewards").is_some(),
                "{id}: neither rewards nor log-probabilities"
            );
            let group = params["num_generations"].as_u64().unwrap() as usize;
            let ours = left_out(case, &floats(&inputs["rewards"]), group);
            let ours = match params["normalize_advantages"].as_bool() {
                Some(true) => batch_normalised(&ours, Deviation::Sample, 1e-4).unwrap(),
                _ => ours,
            };
            all_close(id, &ours, &floats(&case["outputs"]["advantages"]), golden.rtol);
        }
    }
    (golden.cases.len(), 0)
}

#[test]
fn golden_groups_by_index_may_differ_in_size_and_lie_anywhere() {
    let advantages = by_index(&[7, 2, 7, 2, 2], &[1.0, 6.0, 3.0, 0.0, 3.0], |scores| {
        leave_one_out(scores, scores.len()).unwrap()
    });
    all_close("by index", &advantages, &[-2.0, 4.5, 2.0, -4.5, 0.0], 1e-12);
}
