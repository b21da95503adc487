//! Sequences that share their beginnings: computed once they are what they are in rows of their own, in value and gradient.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::path::Path;

use common::random_ids;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor, no_grad};
use unsay_model::{Branches, Decoder, LoraConfig, Precision, Rounding, SequenceClassifier, TargetModules, Trained};

/// Cases of every architecture, with windows in all and in some blocks.
const CASES: [&str; 5] = [
    "gpt2_f32",
    "llama_yarn_f32",
    "mistral_window_f32",
    "phi3_f32",
    "qwen2_sliding_f32",
];

/// Prompts of several lengths, with branches of several lengths; one prompt has one branch, one none.
const GROUPS: [(usize, &[usize]); 5] = [(4, &[3, 5]), (1, &[6, 1]), (6, &[2, 2]), (3, &[4]), (5, &[])];

fn load(case: &str, kind: Kind) -> Decoder {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/parity/cases")
        .join(case);
    Decoder::load_kind(&folder, Device::Cpu, kind).unwrap()
}

fn branches() -> Branches {
    let mut all = Branches::default();
    GROUPS
        .iter()
        .for_each(|(prompt, branches)| all.push(*prompt, branches).unwrap());
    all
}

/// The tokens of each sequence in the order of the branches, and where the tokens of each stand end to end.
fn sequences(ids: &[i64]) -> Vec<(Vec<i64>, Vec<i64>)> {
    let mut all = Vec::new();
    let mut start = 0;
    for (prompt, branches) in GROUPS {
        let places: Vec<usize> = (start..start + prompt).collect();
        let mut next = start + prompt;
        if branches.is_empty() {
            all.push(places.clone());
        }
        for n in branches {
            all.push(places.iter().copied().chain(next..next + n).collect());
            next += n;
        }
        start = next;
    }
    assert_eq!(start, ids.len());
    let of = |places: Vec<usize>| {
        let tokens = places.iter().map(|&place| ids[place]).collect();
        (tokens, places.into_iter().map(|place| place as i64).collect())
    };
    all.into_iter().map(of).collect()
}

/// Something of the states of one sequence that tells its tokens apart.
fn weighed(states: &Tensor) -> Tensor {
    let (n, d) = states.size2().unwrap();
    let weights = Tensor::arange(n * d, (Kind::Double, Device::Cpu)).view([n, d]);
    let weights = ((weights * 0.37).sin() + 0.2).to_kind(states.kind());
    (states * weights).tanh().sum(states.kind())
}

fn gradients(decoder: &Decoder) -> Vec<(String, Tensor)> {
    // An output embedding of its own has no part in the states.
    let found = decoder.params().trainable().filter_map(|param| {
        let gradient = param.gradient().unwrap()?;
        Some((param.name().to_owned(), gradient.to_kind(Kind::Double).copy()))
    });
    let found: Vec<_> = found.collect();
    assert!(found.len() + 1 >= decoder.params().trainable().count());
    decoder.params().zero_grad().unwrap();
    found
}

fn lora() -> Trained {
    Trained::Lora(LoraConfig {
        r: 2,
        alpha: 6.0,
        target_modules: TargetModules::AllLinear,
        layers: None,
        use_rslora: false,
    })
}

#[test]
fn branches_are_what_rows_of_their_own_are_in_value_and_gradient() {
    tch::set_num_threads(1);
    let mut compared = 0;
    for case in CASES {
        for trained in [Trained::All {}, lora(), Trained::Top { layers: 1 }] {
            let decoder = load(case, Kind::Double)
                .with_trained(&trained, &mut ChaCha8Rng::seed_from_u64(1))
                .unwrap();
            let branches = branches();
            let ids = random_ids(branches.n_tokens(), decoder.config().vocab_size, 3);
            let trunk = decoder.trunk();
            let shared = trunk.hidden_branched(&Tensor::from_slice(&ids), &branches).unwrap();
            assert_eq!(shared.size()[..2], [1, ids.len() as i64]);
            let shared = shared.squeeze_dim(0);
            let mut apart = Tensor::from(0.0);
            let mut together = Tensor::from(0.0);
            for (tokens, places) in sequences(&ids) {
                let row = Tensor::from_slice(&tokens).view([1, -1]);
                let own = trunk.hidden(&row).unwrap().squeeze_dim(0);
                let same = shared.index_select(0, &Tensor::from_slice(&places));
                let difference = (&own - &same).abs().max().double_value(&[]);
                assert!(difference < 1e-10, "{case}: {difference}");
                apart += weighed(&own);
                together += weighed(&same);
            }
            apart.backward();
            let apart = gradients(&decoder);
            together.backward();
            let together = gradients(&decoder);
            for ((name, apart), (_, together)) in apart.iter().zip(&together) {
                let scale = apart.abs().max().double_value(&[]).max(1.0);
                let difference = (apart - together).abs().max().double_value(&[]);
                assert!(difference < 1e-10 * scale, "{case} {name}: {difference}");
                compared += usize::from(apart.abs().max().double_value(&[]) > 0.0);
            }
        }
    }
    assert!(compared > 200, "{compared}");
}

/// What another branch says, and what another prompt does, changes nothing: not even the last bit.
#[test]
fn branches_do_not_see_each_other() {
    tch::set_num_threads(1);
    for case in CASES {
        let decoder = load(case, Kind::Float);
        let branches = branches();
        let ids = random_ids(branches.n_tokens(), decoder.config().vocab_size, 5);
        let states = |ids: &[i64]| {
            no_grad(|| decoder.trunk().hidden_branched(&Tensor::from_slice(ids), &branches))
                .unwrap()
                .squeeze_dim(0)
        };
        let before = states(&ids);
        // The second branch of the first prompt: tokens 7 to 11.
        let mut other = ids.clone();
        other[7] = (other[7] + 1) % 20;
        let after = states(&other);
        let same = |range: std::ops::Range<i64>| {
            let part = |t: &Tensor| t.narrow(0, range.start, range.end - range.start);
            part(&before).equal(&part(&after))
        };
        assert!(same(0..7) && same(12..before.size()[0]), "{case}");
        assert!((7..12).all(|at| !same(at..at + 1)), "{case}");
    }
}

#[test]
fn replayed_branches_have_the_gradients_of_the_plain_pass_bit_for_bit() {
    tch::set_num_threads(1);
    let bf16 = Precision::Bf16 { even_if_slower: true };
    let mut compared = 0;
    for case in CASES {
        for (precision, trained) in [Precision::default(), bf16]
            .into_iter()
            .flat_map(|precision| [Trained::All {}, Trained::Top { layers: 1 }, lora()].map(|part| (precision, part)))
        {
            let decoder = load(case, Kind::Float)
                .with_trained(&trained, &mut ChaCha8Rng::seed_from_u64(1))
                .unwrap()
                .with_precision(precision)
                .unwrap();
            let branches = branches();
            let ids = Tensor::from_slice(&random_ids(branches.n_tokens(), decoder.config().vocab_size, 3));
            let trunk = decoder.trunk();
            weighed(&trunk.hidden_branched(&ids, &branches).unwrap().squeeze_dim(0)).backward();
            let plain = gradients(&decoder);
            let n_frozen = decoder.params().n_frozen();
            let replayed = trunk.hidden_branched_replayed(&ids, n_frozen, &branches).unwrap();
            weighed(&replayed.states().squeeze_dim(0)).backward();
            replayed.backward().unwrap();
            for ((name, plain), (_, replayed)) in plain.iter().zip(&gradients(&decoder)) {
                assert!(plain.equal(replayed), "{case} {name} {precision:?} {trained:?}");
                compared += 1;
            }
        }
    }
    assert!(compared > 400, "{compared}");
}

/// In bf16 both ways round, each in its own order.
#[test]
fn branches_in_bf16_are_near_those_in_rows() {
    tch::set_num_threads(1);
    for case in CASES {
        let exact = load(case, Kind::Double);
        let narrow = load(case, Kind::Float)
            .with_precision(Precision::Bf16 { even_if_slower: true })
            .unwrap();
        let branches = branches();
        let ids = random_ids(branches.n_tokens(), exact.config().vocab_size, 3);
        let of = |decoder: &Decoder| {
            let ids = Tensor::from_slice(&ids);
            no_grad(|| decoder.trunk().hidden_branched(&ids, &branches))
                .unwrap()
                .to_kind(Kind::Double)
        };
        let expected = of(&exact);
        let scale = expected.abs().mean(Kind::Double).double_value(&[]);
        let error = (of(&narrow) - &expected).abs().mean(Kind::Double).double_value(&[]);
        assert!(error < 0.05 * scale, "{case}: {error} of {scale}");
    }
}

#[test]
fn a_classifier_scores_each_branch_at_its_last_token() {
    tch::set_num_threads(1);
    let classifier =
        SequenceClassifier::from_trunk(load("llama_yarn_f32", Kind::Double), &mut ChaCha8Rng::seed_from_u64(2))
            .unwrap();
    let branches = branches();
    let ids = random_ids(branches.n_tokens(), classifier.config().vocab_size, 7);
    let states = classifier
        .trunk()
        .hidden_branched(&Tensor::from_slice(&ids), &branches)
        .unwrap()
        .squeeze_dim(0);
    let sequences = sequences(&ids);
    let last: Vec<i64> = sequences.iter().map(|(_, places)| places[places.len() - 1]).collect();
    let scores = classifier.score_at(&states, &Tensor::from_slice(&last)).unwrap();
    assert_eq!(scores.size(), [8]);
    for (i, (tokens, _)) in sequences.iter().enumerate() {
        let row = Tensor::from_slice(tokens).view([1, -1]);
        let own = classifier
            .logits(&row, &Tensor::from_slice(&[tokens.len() as i64]))
            .unwrap();
        assert!((own.double_value(&[0]) - scores.double_value(&[i as i64])).abs() < 1e-12);
    }
    let refused = |last: &[i64]| {
        classifier
            .score_at(&states, &Tensor::from_slice(last))
            .unwrap_err()
            .to_string()
    };
    assert!(refused(&[states.size()[0]]).contains("last token"));
    assert!(refused(&[-1]).contains("last token") && refused(&[]).contains("at least one"));
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let decoder = load("llama_yarn_f32", Kind::Float);
    let longest = decoder.config().max_position_embeddings;
    let refused = |decoder: &Decoder, ids: &[i64], branches: &Branches| {
        let found = decoder.trunk().hidden_branched(&Tensor::from_slice(ids), branches);
        found.unwrap_err().to_string()
    };
    let two = |prompt, branches: &[usize]| {
        let mut all = Branches::default();
        all.push(prompt, branches).unwrap();
        all
    };
    assert!(refused(&decoder, &[1; 4], &two(2, &[1, 2])).contains("[5], as the branches have"));
    assert!(refused(&decoder, &[], &Branches::default()).contains("at least one"));
    assert!(refused(&decoder, &[1, 2, -1], &two(1, &[2])).contains("token id"));
    let long = two(longest, &[1]);
    assert!(refused(&decoder, &vec![1; longest + 1], &long).contains("sequence length"));
    let eager = load("llama_yarn_f32", Kind::Float).rounding_like_transformers(Rounding {
        eager: true,
        ..Rounding::default()
    });
    assert!(refused(&eager, &[1; 5], &two(2, &[1, 2])).contains("step by step"));
}
