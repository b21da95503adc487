//! What a run refuses to go on with.

use crate::support::{assorted, config, decoder, encode, mixed, source};
use tch::{Device, Kind};
use unsay_data::{Label, stream};
use unsay_losses::token::Loss;
use unsay_model::Decoder;
use unsay_train::{ClassifierObjective, Error, Examples, Fit, LanguageObjective, Objective, Settings};

fn nll() -> Loss {
    Loss::Nll(Default::default())
}

/// An untied model whose input embedding of one token is not a number.
fn poisoned(token: i64) -> Decoder {
    tch::set_num_threads(1);
    let mut config = config();
    config.tie_word_embeddings = false;
    let decoder = Decoder::init(&config, &mut stream(5, "init", 0), Device::Cpu).unwrap();
    let embedding = decoder.params().get("model.embed_tokens.weight").unwrap();
    tch::no_grad(|| drop(embedding.get(token).fill_(f64::NAN)));
    decoder
}

#[test]
fn a_value_that_is_not_finite_stops_the_run_and_names_step_term_and_examples() {
    let examples = |token: u32| {
        let one = |i: usize| encode(&[5 + i as u32], &[token * u32::from(i == 2) + 9], Label::Positive, i);
        Examples::new(
            vec![source((0..4).map(one).collect(), 1.0)],
            assorted(3, &[Label::Positive]),
        )
        .unwrap()
    };
    let folder = tempfile::tempdir().unwrap();
    let objective = LanguageObjective::new(poisoned(19), nll(), examples(10)).unwrap();
    let mut fit = Fit::open(objective, &Settings::new(3, 4, 0.1), 0, folder.path()).unwrap();
    let error = fit.next().unwrap().unwrap_err();
    let Error::NonFinite { step, term, examples } = &error else {
        panic!("{error}")
    };
    assert_eq!((*step, term.as_str()), (1, "ce_loss"));
    assert_eq!(*examples, ["id-2"]);
    assert!(fit.next().is_none());
    assert!(fit.save().is_err());
    assert!(fit.last_folder().is_none());
}

#[test]
fn a_gradient_that_is_not_finite_names_its_parameter() {
    // All states are zero, and every norm multiplies the gradient by 1e19 on its way back.
    tch::set_num_threads(1);
    let mut config = config();
    (config.tie_word_embeddings, config.norm_eps) = (false, 1e-38);
    let decoder = Decoder::init(&config, &mut stream(5, "init", 0), Device::Cpu).unwrap();
    let embedding = decoder.params().get("model.embed_tokens.weight").unwrap();
    tch::no_grad(|| drop(embedding.shallow_clone().zero_()));
    let folder = tempfile::tempdir().unwrap();
    let objective = LanguageObjective::new(decoder, nll(), mixed()).unwrap();
    let mut fit = Fit::open(objective, &Settings::new(3, 4, 0.1), 0, folder.path()).unwrap();
    let error = fit.next().unwrap().unwrap_err().to_string();
    assert!(error.starts_with("step 1: `gradient of model."), "{error}");
    assert!(error.contains("; examples: `id-"), "{error}");
}

#[test]
fn a_batch_that_teaches_nothing_is_refused_with_its_step() {
    let labels = [Label::Negative, Label::Negative, Label::Negative, Label::Positive];
    let examples = Examples::new(vec![assorted(8, &labels)], assorted(4, &labels)).unwrap();
    let objective = LanguageObjective::new(decoder(Kind::Float), nll(), examples).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut fit = Fit::open(objective, &Settings::new(8, 1, 0.1), 0, folder.path()).unwrap();
    let error = fit.find_map(Result::err).unwrap().to_string();
    assert!(error.starts_with("step "), "{error}");
    assert!(error.contains("`nll` has nothing to learn from"), "{error}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_with_the_path() {
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/dev/full", folder.path().join("steps.jsonl")).unwrap();
    let objective = LanguageObjective::new(decoder(Kind::Float), nll(), mixed()).unwrap();
    let mut fit = Fit::open(objective, &Settings::new(3, 4, 0.1), 0, folder.path()).unwrap();
    let error = fit.next().unwrap().unwrap_err().to_string();
    assert!(
        error.contains("steps.jsonl") && error.contains("No space left"),
        "{error}"
    );
}

#[test]
fn examples_that_do_not_fit_are_refused_before_the_first_step() {
    let refused = |loss: Loss, train: Vec<_>, valid: Vec<_>| {
        let examples = Examples::new(vec![source(train, 1.0)], source(valid, 1.0)).unwrap();
        LanguageObjective::new(decoder(Kind::Float), loss, examples)
            .map(|_| ())
            .unwrap_err()
            .to_string()
    };
    let good = || vec![encode(&[5], &[6], Label::Positive, 0)];
    let negative = || vec![encode(&[5], &[6], Label::Negative, 0)];
    assert!(refused(nll(), vec![encode(&[5], &[99], Label::Positive, 0)], good()).contains("token 99"));
    assert!(refused(nll(), vec![encode(&[5; 20], &[6], Label::Positive, 0)], good()).contains("16 positions"));
    assert!(refused(nll(), negative(), good()).contains("`nll` learns nothing from the training examples"));
    assert!(refused(nll(), good(), negative()).contains("validation examples"));
    let cringe: Loss = serde_json::from_str(r#"{"cringe": {"alpha": -1.0, "k": 3}}"#).unwrap();
    assert!(refused(cringe, good(), good()).contains("alpha"));
}

#[test]
fn a_classifier_needs_both_labels_and_no_others() {
    let refused = |labels: &[Label]| {
        let examples = Examples::new(vec![assorted(4, labels)], assorted(4, &[Label::Positive])).unwrap();
        ClassifierObjective::new(crate::support::classifier(Kind::Float), examples)
            .map(|_| ())
            .unwrap_err()
            .to_string()
    };
    assert!(refused(&[Label::Positive]).contains("none that is negative"));
    assert!(refused(&[Label::Positive, Label::Negative, Label::Unlabelled]).contains("unlabelled"));
}

#[test]
fn the_starting_weights_stay_when_a_step_fails() {
    let objective = LanguageObjective::new(poisoned(5), nll(), mixed()).unwrap();
    let before = crate::support::numbers(objective.params());
    let folder = tempfile::tempdir().unwrap();
    let mut fit = Fit::open(objective, &Settings::new(3, 12, 0.1), 0, folder.path()).unwrap();
    fit.next().unwrap().unwrap_err();
    let after = crate::support::numbers(fit.objective().params());
    assert!(before.iter().zip(&after).all(|(a, b)| a.to_bits() == b.to_bits()));
}
