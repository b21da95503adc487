//! Training above frozen blocks: from tokens, from states in a file, and with activations computed again.

use std::path::Path;

use crate::support::{self, classifier, decoder, largest_difference, mixed, numbers};
use tch::{Device, Kind};
use unsay_data::{Encoded, Label, stream};
use unsay_losses::token::Loss;
use unsay_model::{Decoder, Precision, Trained};
use unsay_train::{
    ClassifierObjective, Draws, Examples, Fit, LanguageObjective, LogicalBatch, Objective, Place, PrefixStates,
    Settings,
};

const BF16: Precision = Precision::Bf16 { even_if_slower: true };

fn top(decoder: Decoder) -> Decoder {
    decoder
        .with_trained(&Trained::Top { layers: 1 }, &mut stream(0, "lora", 0))
        .unwrap()
}

/// A longer trunk than that of the other tests, of which the last block is trained.
fn deep(kind: Kind, trained: &Trained) -> Decoder {
    tch::set_num_threads(1);
    let mut config = support::config();
    config.num_hidden_layers = 4;
    let decoder = Decoder::init_kind(&config, &mut stream(5, "init", 0), Device::Cpu, kind).unwrap();
    decoder.with_trained(trained, &mut stream(0, "lora", 0)).unwrap()
}

fn language(decoder: Decoder) -> LanguageObjective {
    let cringe: Loss = serde_json::from_str(r#"{"cringe": {"alpha": 1.0, "k": 3}}"#).unwrap();
    LanguageObjective::new(decoder, cringe, mixed()).unwrap()
}

fn write(path: &Path, decoder: &Decoder, n_frozen: usize, encoded: &[Encoded]) -> bool {
    let model = (decoder.trunk(), decoder.params());
    PrefixStates::write(path, model, n_frozen, encoded, &mut |_| (), &|| false).unwrap()
}

/// A file for each source, and last the validation set's.
fn states(folder: &Path, decoder: &Decoder, n_frozen: usize, examples: &Examples) -> Vec<PrefixStates> {
    std::fs::create_dir_all(folder).unwrap();
    let sets = examples.sources().iter().chain([examples.valid()]).enumerate();
    let one = |(i, set): (usize, &unsay_train::Source)| {
        let path = folder.join(i.to_string());
        assert!(write(&path, decoder, n_frozen, &set.encoded));
        PrefixStates::open(&path, &set.encoded).unwrap()
    };
    sets.map(one).collect()
}

fn settings(replay: bool, precision: Precision, micro_batch: usize) -> Settings {
    Settings {
        micro_batch: Some(micro_batch),
        checkpoint_activations: replay,
        precision,
        eval_every: Some(1),
        ..Settings::new(3, 6, 0.01)
    }
}

/// Weights and losses after a few steps.
fn train(objective: impl Objective, settings: &Settings) -> (Vec<f64>, Vec<f64>) {
    let folder = tempfile::tempdir().unwrap();
    let mut fit = Fit::open(objective, settings, 3, folder.path()).unwrap();
    let records: Vec<_> = fit.by_ref().map(Result::unwrap).collect();
    let valid = |record: &unsay_train::StepRecord| record.valid.as_ref().unwrap()[0].1;
    let losses = records
        .iter()
        .flat_map(|r| [r.metric("loss").unwrap(), r.metric("grad_norm").unwrap(), valid(r)]);
    (numbers(fit.objective().params()), losses.collect())
}

#[test]
fn replayed_steps_are_the_plain_ones() {
    let top = Trained::Top { layers: 2 };
    for (kind, precision) in [
        (Kind::Double, Precision::default()),
        (Kind::Float, Precision::default()),
        (Kind::Float, BF16),
    ] {
        for trained in [&Trained::All {}, &top, &support::lora(3)] {
            for micro_batch in [6, 4] {
                let run = |replay| train(language(deep(kind, trained)), &settings(replay, precision, micro_batch));
                let (plain, replayed) = (run(false), run(true));
                assert_eq!(plain.1.len(), 9);
                assert!(
                    largest_difference(&plain.1, &replayed.1) < 1e-300,
                    "{kind:?} {trained:?}"
                );
                assert!(
                    largest_difference(&plain.0, &replayed.0) < 1e-300,
                    "{kind:?} {trained:?}"
                );
            }
        }
    }
    let labels = [Label::Positive, Label::Negative];
    let run = |replay| {
        let examples = Examples::new(vec![support::assorted(9, &labels)], support::assorted(4, &labels)).unwrap();
        let objective = ClassifierObjective::new(classifier(Kind::Float), examples).unwrap();
        train(objective, &settings(replay, Precision::default(), 4))
    };
    assert!(largest_difference(&run(false).0, &run(true).0) < 1e-300);
}

/// All gradients of one logical batch.
fn gradients(objective: LanguageObjective, settings: &Settings) -> Vec<f64> {
    let objective = objective.configure(settings).unwrap();
    let places = (0..7).map(|i| Place::Train {
        source: i % 2,
        index: i,
    });
    let batch = LogicalBatch {
        places: places.collect(),
        micro_batch: settings.micro_batch(),
        draws: Draws {
            seed: 3,
            purpose: "loss-draws",
            position: 9,
        },
        train: true,
    };
    objective.run(&batch).unwrap();
    let all = objective
        .params()
        .trainable()
        .map(|param| param.gradient().unwrap().unwrap());
    all.flat_map(|gradient| Vec::<f64>::try_from(gradient.to_kind(Kind::Double).view(-1)).unwrap())
        .collect()
}

#[test]
fn gradients_from_a_file_of_states_are_those_from_tokens() {
    for (kind, precision, tolerance) in [
        (Kind::Double, Precision::default(), 1e-12),
        (Kind::Float, Precision::default(), 1e-5),
        (Kind::Float, BF16, 0.02),
    ] {
        let ways = [Trained::Top { layers: 1 }, support::lora(3)];
        for (replay, frozen) in [false, true]
            .into_iter()
            .flat_map(|replay| ways.each_ref().map(|way| (replay, way)))
        {
            let settings = settings(replay, precision, 4);
            let plain = gradients(language(deep(kind, frozen)), &settings);
            let scale = plain.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
            // All that is frozen, and less than that.
            for n_frozen in [3, 1] {
                let folder = tempfile::tempdir().unwrap();
                let made_by = deep(kind, frozen).with_precision(precision).unwrap();
                let files = states(folder.path(), &made_by, n_frozen, &mixed());
                assert!(files.iter().all(|file| file.n_blocks() == n_frozen));
                let objective = language(deep(kind, frozen)).with_prefix_states(files).unwrap();
                let cached = gradients(objective, &settings);
                let difference = largest_difference(&plain, &cached);
                assert!(
                    difference < tolerance * scale,
                    "{difference} of {scale}: {kind:?} {precision:?}"
                );
            }
        }
    }
}

#[test]
fn a_classifier_with_an_adapter_resumes_exactly() {
    let labels = [Label::Positive, Label::Negative];
    let run = |stops: &[usize]| {
        let folder = tempfile::tempdir().unwrap();
        for &stop in stops.iter().chain(&[9]) {
            let examples = Examples::new(vec![support::assorted(9, &labels)], support::assorted(4, &labels)).unwrap();
            let adapted = classifier(Kind::Float).with_trained(&support::lora(1), &mut stream(0, "lora", 0));
            let objective = ClassifierObjective::new(adapted.unwrap(), examples).unwrap();
            let settings = Settings {
                checkpoint_every: Some(2),
                ..settings(true, BF16, 4)
            };
            let fit = Fit::open(objective.with_base_name("base"), &settings, 3, folder.path()).unwrap();
            fit.take(stop).for_each(|record| drop(record.unwrap()));
        }
        support::files(folder.path())
    };
    let whole = run(&[]);
    assert!(whole.keys().any(|name| name.ends_with("adapter_model.safetensors")));
    assert!(whole == run(&[1]) && whole == run(&[2]));
}

#[test]
fn a_classifier_trains_from_states_too() {
    let labels = [Label::Positive, Label::Negative];
    let examples = || Examples::new(vec![support::assorted(9, &labels)], support::assorted(4, &labels)).unwrap();
    let frozen = |kind| {
        classifier(kind)
            .with_trained(&Trained::Top { layers: 1 }, &mut stream(0, "lora", 0))
            .unwrap()
    };
    let plain = ClassifierObjective::new(frozen(Kind::Double), examples()).unwrap();
    let settings = settings(false, Precision::default(), 4);
    let (plain, losses) = train(plain, &settings);
    let folder = tempfile::tempdir().unwrap();
    // The trunk is that of the decoder.
    let files = states(folder.path(), &decoder(Kind::Double), 1, &examples());
    let cached = ClassifierObjective::new(frozen(Kind::Double), examples()).unwrap();
    let (cached, cached_losses) = train(cached.with_prefix_states(files).unwrap(), &settings);
    assert!(largest_difference(&losses, &cached_losses) < 1e-12);
    assert!(largest_difference(&plain, &cached) < 1e-10);
}

#[test]
fn files_of_states_that_do_not_fit_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let (base, examples) = (top(decoder(Kind::Float)), mixed());
    let encoded = &examples.sources()[0].encoded;
    let path = folder.path().join("states");
    assert!(write(&path, &base, 1, encoded));
    let opened = |encoded: &[Encoded]| PrefixStates::open(&path, encoded).map(|_| ()).unwrap_err().to_string();
    assert!(opened(&encoded[1..]).contains("expected the states of 10 examples, got 11"));
    let mut other = encoded.clone();
    other[3].ids[1] += 1;
    assert!(opened(&other).contains("made of other tokens"), "{}", opened(&other));

    let whole = std::fs::read(&path).unwrap();
    for (bytes, expected) in [
        (&whole[..whole.len() - 1], "it is cut short"),
        (&whole[..20], "a header of"),
        (&whole[..5], "5 bytes long"),
        (&[255; 64], "a header of"),
        (b"\x08\0\0\0\0\0\0\0notjson!".as_slice(), "not a file of states: header"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let error = opened(encoded);
        assert!(error.contains(expected) && error.contains("states`"), "{error}");
    }
    std::fs::write(&path, [&whole[..], &[0]].concat()).unwrap();
    assert!(opened(encoded).contains("hint: remove it"));
    std::fs::remove_file(&path).unwrap();
    assert!(opened(encoded).contains("states`"));

    // Made of another model, in another precision, or above what is trained.
    let refused = |decoder: Decoder, files: Vec<PrefixStates>, precision| {
        let objective = language(decoder).with_prefix_states(files).unwrap();
        let fit = Fit::open(objective, &settings(false, precision, 6), 3, &folder.path().join("run"));
        fit.map(|_| ()).unwrap_err().to_string()
    };
    let files = || states(folder.path(), &base, 1, &mixed());
    let mut config = support::config();
    config.initializer_range = 0.2;
    let foreign = Decoder::init(&config, &mut stream(5, "init", 0), Device::Cpu).unwrap();
    let error = refused(top(foreign), files(), Precision::default());
    assert!(error.contains("other weights") && error.contains("hint: "), "{error}");
    assert!(refused(decoder(Kind::Float), files(), Precision::default()).contains("at most 0 blocks"));
    // Of the same description: any number of the embedding or of a block below counts, and none above.
    let changed = |name: &str| {
        let changed = top(decoder(Kind::Float));
        let found = changed.params().iter().find(|(known, _)| *known == name).unwrap();
        let _ = tch::no_grad(|| found.1.view(-1).get(3).fill_(0.5));
        changed
    };
    for name in [
        "model.embed_tokens.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.mlp.down_proj.weight",
    ] {
        let error = refused(changed(name), files(), Precision::default());
        assert!(error.contains("other weights"), "{name}: {error}");
    }
    for name in ["model.layers.1.mlp.down_proj.weight", "model.norm.weight"] {
        let objective = language(changed(name)).with_prefix_states(files()).unwrap();
        let elsewhere = folder.path().join(name);
        assert!(Fit::open(objective, &settings(false, Precision::default(), 6), 3, &elsewhere).is_ok());
    }
    assert!(
        refused(top(decoder(Kind::Float)), files(), BF16).contains("expected bf16, as the model computes, got f32")
    );
    let too_few = language(top(decoder(Kind::Float))).with_prefix_states(files().split_off(1));
    assert!(too_few.unwrap_err().to_string().contains("expected 3 files of states"));
    let mut swapped = files();
    swapped.swap(0, 1);
    assert!(language(top(decoder(Kind::Float))).with_prefix_states(swapped).is_err());
    // Every file is one of this model, but they do not begin at the same block.
    let three = deep(Kind::Float, &Trained::Top { layers: 1 });
    for uneven in [0, 2] {
        let mut files = states(folder.path(), &three, 3, &mixed());
        let lower = states(&folder.path().join("lower"), &three, 2, &mixed());
        files[uneven] = lower.into_iter().nth(uneven).unwrap();
        let error = refused(
            deep(Kind::Float, &Trained::Top { layers: 1 }),
            files,
            Precision::default(),
        );
        assert!(error.contains("blocks, as the other files have, got "), "{error}");
    }
    assert!(!folder.path().join("run").exists());
}

#[test]
fn a_file_of_states_is_made_whole_or_not_at_all_and_says_how_far_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("states");
    let base = decoder(Kind::Float);
    let model = (base.trunk(), base.params());
    // More than wait in memory at once.
    let many = support::assorted(9000, &[Label::Positive]).encoded;
    let mut told = Vec::new();
    let mut write = |stop: &dyn Fn() -> bool| {
        PrefixStates::write(&path, model, 1, &many, &mut |done| told.push(done), stop).unwrap()
    };
    assert!(!write(&|| true));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    assert!(write(&|| false));
    assert!(
        told.len() > 1 && told.is_sorted() && told.last() == Some(&9000),
        "{told:?}"
    );
    let bytes = std::fs::read(&path).unwrap();
    let again = || PrefixStates::write(&path, model, 1, &many, &mut |_| (), &|| false).unwrap();
    assert!(again() && bytes == std::fs::read(&path).unwrap());
    let none = PrefixStates::write(&path, model, 1, &[], &mut |_| (), &|| false);
    assert!(none.unwrap_err().to_string().contains("no examples"));
}
