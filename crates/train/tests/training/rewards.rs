//! Reward models on pairs in the loop.

use crate::accumulation::{assert_same, places, seen};
use crate::resume::assert_resumes_exactly;
use crate::support::{self, classifier, largest_difference, pair, pairs_source, some_pairs};
use tch::{Device, Kind, Tensor};
use unsay_data::{Tokenizer, stream};
use unsay_losses::scores::Loss;
use unsay_model::{Precision, SequenceClassifier};
use unsay_train::{Examples, Fit, Objective, RewardObjective, Settings};

fn loss(centre: f64) -> Loss {
    serde_json::from_str(&format!(r#"{{"bradley_terry": {{"centre": {centre}}}}}"#)).unwrap()
}

fn objective(kind: Kind) -> RewardObjective {
    RewardObjective::new(classifier(kind), loss(0.1), some_pairs()).unwrap()
}

#[test]
fn any_split_and_prompts_apart_give_the_same_gradients() {
    let picks: Vec<usize> = (0..9).map(|i| i * 2).collect();
    for micro_batch in [1, 4] {
        assert_same(&objective(Kind::Double), &picks, micro_batch, 1e-10);
    }
    let of = |objective: &RewardObjective| {
        let places = places(objective.examples(), &picks);
        seen(objective, &places, places.len())
    };
    let (shared, apart) = (
        of(&objective(Kind::Double)),
        of(&objective(Kind::Double).with_prompts_apart()),
    );
    assert!((shared.loss - apart.loss).abs() < 1e-10);
    assert!(largest_difference(&shared.gradients, &apart.gradients) < 1e-10);
    let names: Vec<&str> = shared.named.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["accuracy", "margin", "min_reward", "mean_reward", "max_reward"]);
    for ((name, a), (_, b)) in shared.named.iter().zip(&apart.named) {
        assert!((a - b).abs() < 1e-10, "{name}");
    }
    let named = |name: &str| shared.named.iter().find(|(known, _)| known == name).unwrap().1;
    assert!(named("min_reward") < named("mean_reward") && named("mean_reward") < named("max_reward"));
}

#[test]
fn a_reward_run_resumes_exactly() {
    assert_resumes_exactly(|| objective(Kind::Float), 7, &[vec![5], vec![7, 4]]);
}

/// The end of a completion is a token like others to the score, also where it is what fills rows up: with prompts and
/// completions of one length each, a score at another token would be the same on both sides, and the accuracy chance.
#[test]
fn a_reward_model_learns_from_pairs_whatever_the_pad_is() {
    for precision in [Precision::default(), Precision::Bf16 { even_if_slower: true }] {
        for pad in [Tokenizer::PAD, Tokenizer::EOS] {
            // Preferred is what repeats the second token of the prompt; completions have lengths of their own.
            let one = |i: usize| {
                let (a, b) = (support::FIRST + (i / 4) as u32, support::FIRST + 4 + (i % 4) as u32);
                pair(&[a, b], &vec![b; 1 + i % 3], &vec![a; 1 + i % 2], i)
            };
            let source = || pairs_source((0..16).map(one).collect());
            let examples = Examples::new(vec![source()], source()).unwrap();
            let mut config = support::config();
            config.pad_token_id = Some(pad);
            let decoder =
                unsay_model::Decoder::init_kind(&config, &mut stream(5, "init", 0), Device::Cpu, Kind::Float).unwrap();
            let classifier = SequenceClassifier::from_trunk(decoder, &mut stream(5, "head", 0)).unwrap();
            let objective = RewardObjective::new(classifier, loss(0.0), examples).unwrap();
            let settings = Settings {
                precision,
                ..Settings::new(60, 8, 0.01)
            };
            let folder = tempfile::tempdir().unwrap();
            let mut fit = Fit::open(objective, &settings, 0, folder.path()).unwrap();
            let last = fit.by_ref().map(Result::unwrap).last().unwrap().valid.unwrap();
            let of = |name: &str| last.iter().find(|(known, _)| known == name).unwrap().1;
            assert!(of("accuracy") > 0.99 && of("margin") > 1.0, "{last:?}");
            // What other tools read is the same model: one label, and a score at the last token of a row, padded or not.
            let saved = fit.last_folder().unwrap();
            let text = std::fs::read_to_string(saved.join("config.json")).unwrap();
            assert!(
                text.contains("LlamaForSequenceClassification") && text.contains("\"num_labels\": 1"),
                "{text}"
            );
            let read = SequenceClassifier::load(&saved, Device::Cpu).unwrap();
            let ids = |pair: &unsay_data::EncodedPair, width: usize| {
                let mut row: Vec<i64> = pair
                    .prompt
                    .iter()
                    .chain(&pair.chosen.ids)
                    .map(|&id| id.into())
                    .collect();
                let length = row.len() as i64;
                row.resize(width, i64::from(pad));
                (Tensor::from_slice(&row).view([1, -1]), Tensor::from_slice(&[length]))
            };
            let pairs = &fit.objective().examples().valid().encoded;
            for pair in pairs {
                let score = |width| {
                    let (ids, length) = ids(pair, width);
                    read.logits(&ids, &length).unwrap().double_value(&[0])
                };
                let own = pair.prompt.len() + pair.chosen.ids.len();
                assert!((score(own) - score(12)).abs() < 1e-4);
            }
        }
    }
}

#[test]
fn what_is_no_reward_model_is_refused_by_name() {
    let refused = |classifier, loss| {
        let found = RewardObjective::new(classifier, loss, some_pairs());
        found.map(|_| ()).unwrap_err().to_string()
    };
    let pointwise: Loss = serde_json::from_str(r#"{"pointwise": {}}"#).unwrap();
    assert!(refused(classifier(Kind::Float), pointwise).contains("`pointwise` learns from labels, got pairs"));
    let two = SequenceClassifier::with_labels(support::decoder(Kind::Float), 2, &mut stream(5, "head", 0)).unwrap();
    assert!(refused(two, loss(0.0)).contains("a classifier of 2 labels"));
    assert!(refused(classifier(Kind::Float), loss(-1.0)).contains("centre"));
}
