//! Neither a word, nor a pair of words, nor the whole reply tells the label without the context.

use std::collections::{HashMap, HashSet};

use super::super::grammar::GRAMMAR;
use super::super::templates::{CONTEXTS, Family, REPLIES};
use super::*;

/// How often something occurs in safe and in unsafe replies.
type Counts<'a> = HashMap<Vec<&'a str>, [usize; 2]>;

fn safe(example: &Example) -> bool {
    example.label == Label::Positive
}

/// The distinct runs of `n` words of a reply.
fn runs(reply: &str, n: usize) -> HashSet<Vec<&str>> {
    words(reply).windows(n).map(<[&str]>::to_vec).collect()
}

fn count(examples: &[Example], n: usize) -> Counts<'_> {
    let mut counts = Counts::new();
    for example in examples {
        for run in runs(&example.completion, n) {
            counts.entry(run).or_default()[usize::from(safe(example))] += 1;
        }
    }
    counts
}

fn share(n: usize, of: usize) -> f64 {
    n as f64 / of as f64
}

/// Accuracy on `scored` of the best rule of the form "safe exactly when this run of words occurs (or does not)".
fn best_single_run(n: usize, scored: &[Example]) -> (f64, String) {
    let n_safe = scored.iter().filter(|e| safe(e)).count();
    let n_unsafe = scored.len() - n_safe;
    let accuracy = |[in_unsafe, in_safe]: [usize; 2]| {
        let right = (in_safe + n_unsafe - in_unsafe).max(in_unsafe + n_safe - in_safe);
        share(right, scored.len())
    };
    let counts = count(scored, n);
    let all = counts.iter().map(|(run, found)| (accuracy(*found), run.join(" ")));
    all.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
}

/// Accuracy of naive Bayes over the runs of words of the reply.
fn naive_bayes(n: usize, train: &[Example], scored: &[Example]) -> f64 {
    let counts = count(train, n);
    let weight = |run: &Vec<&str>| {
        let [in_unsafe, in_safe] = counts.get(run).copied().unwrap_or_default();
        ((in_safe + 1) as f64 / (in_unsafe + 1) as f64).ln()
    };
    let score = |e: &Example| runs(&e.completion, n).iter().map(weight).sum::<f64>();
    let right = scored.iter().filter(|e| (score(e) > 0.0) == safe(e));
    share(right.count(), scored.len())
}

#[test]
fn no_word_and_no_pair_of_words_predicts_safety() {
    let world = World::new(5);
    for split in Split::ALL {
        let scored = world.labelled(split, 20_000);
        for n in [1, 2] {
            // The rule is even chosen on the examples that it is scored on.
            let (accuracy, run) = best_single_run(n, &scored);
            println!("{} best run of {n}: {accuracy:.4} `{run}`", split.name());
            assert!(accuracy < 0.65, "`{run}` predicts safety: {accuracy}");
        }
    }
}

#[test]
fn a_bag_of_words_of_the_reply_is_a_weak_predictor() {
    let world = World::new(5);
    let train = world.labelled(Split::Train, 40_000);
    for split in [Split::Valid, Split::Test] {
        let scored = world.labelled(split, 10_000);
        for n in [1, 2] {
            let accuracy = naive_bayes(n, &train, &scored);
            println!("{} bag of runs of {n}: {accuracy:.4}", split.name());
            assert!(accuracy < 0.68, "runs of {n} words: {accuracy}");
        }
    }
}

#[test]
fn the_exact_reply_is_a_weak_predictor() {
    let world = World::new(5);
    let examples = world.labelled(Split::Train, 100_000);
    let (train, scored) = examples.split_at(80_000);
    let mut counts: HashMap<&str, [usize; 2]> = HashMap::new();
    for example in train {
        counts.entry(&example.completion).or_default()[usize::from(safe(example))] += 1;
    }
    let known: Vec<&Example> = scored
        .iter()
        .filter(|e| counts.contains_key(e.completion.as_str()))
        .collect();
    let right = known.iter().filter(|e| {
        let [in_unsafe, in_safe] = counts[e.completion.as_str()];
        (in_safe >= in_unsafe) == safe(e)
    });
    let accuracy = share(right.count(), known.len());
    println!("exact reply: {accuracy:.4} on {} known", known.len());
    assert!(known.len() > 8_000);
    assert!(accuracy < 0.75, "{accuracy}");
}

/// Even with a perfect reading of the reply: unsafe when it is in favour, safe when it is against.
#[test]
fn the_stance_of_the_reply_is_a_weak_predictor() {
    let examples = World::new(5).labelled(Split::Train, 20_000);
    let against = |e: &&Example| GRAMMAR.read_reply(&e.completion)[0].sign < 0;
    let right = examples.iter().filter(|e| against(e) == safe(e)).count();
    let accuracy = share(right, examples.len());
    println!("stance: {accuracy:.4}");
    assert!((0.55..0.70).contains(&accuracy), "{accuracy}");
}

#[test]
fn labels_are_balanced_within_every_kind_of_reply() {
    let examples = World::new(5).labelled(Split::Train, 40_000);
    let n_safe = examples.iter().filter(|e| safe(e)).count();
    assert!((share(n_safe, examples.len()) - 0.5).abs() < 0.01);
    let mut by_line: HashMap<usize, [usize; 2]> = HashMap::new();
    for example in &examples {
        let line = GRAMMAR.read_reply(&example.completion)[0].line;
        by_line.entry(line).or_default()[usize::from(safe(example))] += 1;
    }
    let mut n_deflections = 0;
    for (line, [n_unsafe, n_safe]) in &by_line {
        if REPLIES[*line].family == Family::Deflection {
            assert_eq!(*n_unsafe, 0);
            n_deflections += n_safe;
        } else {
            let share = share(*n_safe, n_safe + n_unsafe);
            assert!((0.4..0.56).contains(&share), "{}: {share}", REPLIES[*line].text);
        }
    }
    let sensitive = REPLIES.iter().filter(|r| !matches!(r.family, Family::Benign(_)));
    assert_eq!(by_line.len(), sensitive.count());
    assert!((0.06..0.10).contains(&share(n_deflections, n_safe)));
}

#[test]
fn pretraining_text_is_half_small_talk_and_otherwise_often_unsafe() {
    let examples = World::new(5).pretraining(20_000);
    let sensitive: Vec<&Example> = examples
        .iter()
        .filter(|e| {
            let context = &GRAMMAR.read_context(&e.prompt)[0];
            !matches!(CONTEXTS[context.line].family, Family::Benign(_))
        })
        .collect();
    assert!((0.48..0.52).contains(&share(sensitive.len(), examples.len())));
    let n_unsafe = sensitive.iter().filter(|e| judged(e) == Verdict::Unsafe).count();
    assert!((0.37..0.43).contains(&share(n_unsafe, sensitive.len())));
    assert!(examples.iter().all(|e| e.label == Label::Unlabelled));
}
