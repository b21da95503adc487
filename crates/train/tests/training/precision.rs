//! Training in bf16: with masters in f32, learning as in f32.

use crate::support::{self, decoder, files, largest_difference, mixed, numbers};
use tch::{Device, Kind, Tensor};
use unsay_data::{Label, stream};
use unsay_losses::token::Loss;
use unsay_model::{Config, Decoder, Params, Precision, Size, Trained};
use unsay_train::{
    ClassifierObjective, Draws, Examples, Fit, LanguageObjective, LogicalBatch, Objective, Place, Settings, Source,
};

const BF16: Precision = Precision::Bf16 { even_if_slower: true };

fn nll(decoder: Decoder, examples: Examples) -> LanguageObjective {
    LanguageObjective::new(decoder, Loss::Nll(Default::default()), examples).unwrap()
}

fn settings() -> Settings {
    Settings {
        micro_batch: Some(3),
        weight_decay: 0.1,
        eval_every: Some(2),
        checkpoint_every: Some(3),
        precision: BF16,
        ..Settings::new(8, 6, 0.02)
    }
}

#[test]
fn a_bf16_run_resumes_exactly() {
    for trained in [Trained::All {}, Trained::Top { layers: 1 }, support::lora(1)] {
        let run = |stops: &[usize]| {
            let folder = tempfile::tempdir().unwrap();
            for &stop in stops.iter().chain(&[usize::MAX]) {
                let decoder = decoder(Kind::Float)
                    .with_trained(&trained, &mut stream(0, "lora", 0))
                    .unwrap();
                let mut fit = Fit::open(nll(decoder, mixed()), &settings(), 4, folder.path()).unwrap();
                fit.by_ref().take(stop).for_each(|record| drop(record.unwrap()));
                assert_eq!(fit.objective().decoder().trunk().kind().unwrap(), Kind::BFloat16);
                if stop == 2 {
                    fit.save().unwrap();
                }
            }
            files(folder.path())
        };
        let whole = run(&[]);
        // A folder of weights or of an adapter has two files.
        assert_eq!(whole.len(), 7);
        for stops in [vec![2], vec![4], vec![1, 2, 5]] {
            let found = run(&stops);
            assert!(found.keys().eq(whole.keys()), "{stops:?}");
            for (name, content) in &found {
                assert!(*content == whole[name], "{name} after {stops:?}");
            }
        }
    }
}

#[test]
fn a_checkpoint_of_another_precision_or_part_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut fit = Fit::open(nll(decoder(Kind::Float), mixed()), &settings(), 4, folder.path()).unwrap();
    fit.by_ref().for_each(|record| drop(record.unwrap()));
    let refused = |trained: Trained, settings: &Settings| {
        let decoder = decoder(Kind::Float)
            .with_trained(&trained, &mut stream(0, "lora", 0))
            .unwrap();
        let fit = Fit::open(nll(decoder, mixed()), settings, 4, folder.path());
        fit.map(|_| ()).unwrap_err().to_string()
    };
    let plain = Settings {
        precision: Precision::default(),
        ..settings()
    };
    assert!(refused(Trained::All {}, &plain).contains("other settings"));
    assert!(refused(Trained::Top { layers: 1 }, &settings()).contains("other settings"));
}

#[test]
fn micro_batches_give_the_update_of_the_whole_batch() {
    let after = |precision, micro_batch| {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings {
            precision,
            micro_batch: Some(micro_batch),
            ..Settings::new(3, 8, 0.01)
        };
        let mut fit = Fit::open(nll(decoder(Kind::Float), mixed()), &settings, 1, folder.path()).unwrap();
        let norms = fit.by_ref().map(|record| record.unwrap().metric("grad_norm").unwrap());
        let norms: Vec<f64> = norms.collect();
        (numbers(fit.objective().params()), norms)
    };
    let (plain, plain_norms) = after(Precision::default(), 8);
    for micro_batch in [8, 3, 1] {
        let (narrow, norms) = after(BF16, micro_batch);
        // Three updates of about 0.01 a number; their signs can differ where gradients are near zero.
        let distance = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
        let moved = distance(&plain, &numbers(decoder(Kind::Float).params()));
        assert!(
            distance(&plain, &narrow) < 0.15 * moved,
            "{micro_batch}: {} {moved}",
            distance(&plain, &narrow)
        );
        assert!(
            largest_difference(&plain_norms, &norms) < 0.02 * plain_norms[0],
            "{plain_norms:?} {norms:?}"
        );
    }
}

/// Both objectives hand their gradients on after every micro-batch: the leaf's own sum would be in bf16.
#[test]
fn micro_batches_are_added_up_in_f32_by_every_objective() {
    let run = |objective: &dyn Fn(&LogicalBatch)| {
        let batch = LogicalBatch {
            places: (0..8).map(|index| Place::Train { source: 0, index }).collect(),
            micro_batch: 3,
            draws: Draws {
                seed: 1,
                purpose: "loss-draws",
                position: 0,
            },
            train: true,
        };
        objective(&batch);
    };
    let check = |params: &Params| {
        for param in params.trainable() {
            let gradient = param.gradient().unwrap().unwrap();
            assert_eq!(gradient.kind(), Kind::Float, "{}", param.name());
            assert_eq!(param.value().grad().kind(), Kind::BFloat16);
            assert!(gradient.abs().max().double_value(&[]) > 0.0, "{}", param.name());
            assert!(param.value().grad().count_nonzero(None::<i64>).int64_value(&[]) == 0);
        }
    };
    let language = nll(decoder(Kind::Float), mixed()).configure(&settings()).unwrap();
    run(&|batch| drop(language.run(batch).unwrap()));
    check(language.params());
    let labels = [Label::Positive, Label::Negative];
    let examples = Examples::new(vec![support::assorted(9, &labels)], support::assorted(4, &labels)).unwrap();
    let classifier = ClassifierObjective::new(support::classifier(Kind::Float), examples).unwrap();
    let classifier = classifier.configure(&settings()).unwrap();
    run(&|batch| drop(classifier.run(batch).unwrap()));
    check(classifier.params());
}

/// Settings that would be slower are refused by the loop, too.
#[test]
fn what_a_model_cannot_do_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let error = Fit::open(nll(decoder(Kind::Double), mixed()), &settings(), 4, &path);
    let error = error.map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("expected Float, got Double"), "{error}");
    assert!(!path.exists());
}

/// Sentences of a little grammar with noise, so that there is something to learn for hundreds of steps.
fn sentences(n: usize, seed: u64) -> Source {
    use rand::Rng;
    let mut rng = stream(seed, "sentences", 0);
    let one = |example: usize| {
        let mut said = vec![4 + rng.random_range(0..60), 4 + rng.random_range(0..60)];
        for _ in 0..13 {
            let [.., before, last] = said[..] else { continue };
            let next = match rng.random_range(0..4) {
                0 => rng.random_range(0..60),
                1 => ((last - 4) * 7 + 3) % 60,
                _ => (last + before - 8) % 60,
            };
            said.push(4 + next);
        }
        support::encode(&said[..1], &said[1..], Label::Unlabelled, example)
    };
    support::source((0..n).map(one).collect(), 1.0)
}

/// The losses of 200 steps for each of three seeds, in one precision.
fn curves(precision: Precision) -> Vec<Vec<f64>> {
    let size = Size {
        hidden_size: 32,
        intermediate_size: 64,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
    };
    let one = |seed: u64| {
        let folder = tempfile::tempdir().unwrap();
        let examples = Examples::new(vec![sentences(400, 0)], sentences(20, 1)).unwrap();
        let config = Config::new(&size, 64, 20);
        let decoder = Decoder::init(&config, &mut stream(seed, "init", 0), Device::Cpu).unwrap();
        let settings = Settings {
            precision,
            warmup: 10,
            ..Settings::new(200, 8, 3e-3)
        };
        let fit = Fit::open(nll(decoder, examples), &settings, seed, folder.path()).unwrap();
        fit.map(|record| record.unwrap().metric("loss").unwrap()).collect()
    };
    (0..3).map(one).collect()
}

#[test]
fn two_hundred_steps_in_bf16_stay_within_the_noise_of_seeds() {
    tch::set_num_threads(1);
    let (plain, narrow) = (curves(Precision::default()), curves(BF16));
    let tensor = |curves: &[Vec<f64>]| Tensor::from_slice2(curves);
    let (plain, narrow) = (tensor(&plain), tensor(&narrow));
    assert_eq!(plain.size(), [3, 200]);
    let mean = |tensor: Tensor| tensor.mean(Kind::Double).double_value(&[]);
    let (start, end) = (mean(plain.narrow(1, 0, 5)), mean(plain.narrow(1, 190, 10)));
    assert!(end < start - 0.5, "{start} {end}");
    let difference = mean((&plain - &narrow).abs());
    let spread = mean(plain.std_dim([0_i64].as_slice(), true, false));
    // Not the same numbers, and an order of magnitude closer than two seeds are.
    assert!(
        difference > 1e-5 && difference < 0.2 * spread,
        "{difference} against {spread}"
    );
    let ends = mean((plain.narrow(1, 190, 10) - narrow.narrow(1, 190, 10)).mean(Kind::Double)).abs();
    assert!(ends < 0.2 * spread, "{ends} against {spread}");
}
