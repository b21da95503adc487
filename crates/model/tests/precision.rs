//! Computing in bf16: masters, rounding, folders.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{config, random_ids};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};
use unsay_model::{
    Decoder, Generation, Layers, LoraConfig, Precision, Sampling, SequenceClassifier, TargetModules, Trained, weights,
};

const BF16: Precision = Precision::Bf16 { even_if_slower: true };

fn decoder(seed: u64) -> Decoder {
    let mut config = config(4, 2, 8, 3);
    config.initializer_range = 0.1;
    common::decoder(&config, seed, Kind::Float)
}

fn ids(rows: i64, width: i64) -> Tensor {
    Tensor::from_slice(&random_ids((rows * width) as usize, 31, 3)).view([rows, width])
}

fn largest(tensor: &Tensor) -> f64 {
    tensor.abs().max().double_value(&[])
}

fn equal(a: &Tensor, b: &Tensor) -> bool {
    a.kind() == b.kind() && a.size() == b.size() && largest(&(a - b)) == 0.0
}

#[test]
fn masters_keep_what_the_leaves_round() {
    let (plain, narrow) = (decoder(1), decoder(1).with_precision(BF16).unwrap());
    assert_eq!(narrow.trunk().kind().unwrap(), Kind::BFloat16);
    let pairs = plain.params().iter().zip(narrow.params().iter());
    let same = pairs.filter(|((name, a), (other, b))| name == other && equal(a, b));
    assert_eq!(same.count(), plain.params().len());
    for param in narrow.params().trainable() {
        let master = param.master().unwrap();
        assert!(equal(&master.to_kind(Kind::BFloat16), &param.value().detach()));
        assert!(param.value().requires_grad() && param.value().is_leaf() && !master.requires_grad());
    }
    // And back: nothing was lost.
    let back = narrow.with_precision(Precision::default()).unwrap();
    let mut pairs = plain.params().iter().zip(back.params().iter());
    assert!(pairs.all(|((_, a), (_, b))| equal(a, b)));
    assert!(back.params().trainable().all(|param| param.master().is_none()));
}

#[test]
fn what_is_saved_whole_is_not_rounded_where_it_is_frozen() {
    let top = Trained::Top { layers: 1 };
    let rng = || ChaCha8Rng::seed_from_u64(1);
    let plain = decoder(1);
    let same = |decoder: &Decoder| {
        let mut pairs = plain.params().iter().zip(decoder.params().iter());
        pairs.all(|((_, a), (_, b))| equal(a, b))
    };
    let chosen_first = decoder(1).with_trained(&top, &mut rng()).unwrap();
    let chosen_first = chosen_first.with_precision(BF16).unwrap();
    let chosen_later = decoder(1).with_precision(BF16).unwrap();
    let chosen_later = chosen_later.with_trained(&top, &mut rng()).unwrap();
    for narrow in [chosen_first, chosen_later] {
        assert_eq!((narrow.params().trainable().count(), narrow.params().len()), (10, 29));
        assert_eq!(narrow.output_embedding().kind(), Kind::BFloat16);
        assert!(same(&narrow));
        let folder = tempfile::tempdir().unwrap();
        narrow.save(folder.path()).unwrap();
        assert!(same(&Decoder::load(folder.path(), Device::Cpu).unwrap()));
    }
    // Below an adapter nothing is saved, and nothing kept.
    let adapted = decoder(1).with_trained(&Trained::Lora(lora(&[2])), &mut rng()).unwrap();
    let adapted = adapted.with_precision(BF16).unwrap();
    let (_, below) = adapted.params().iter().next().unwrap();
    assert_eq!(below.kind(), Kind::BFloat16);
}

#[test]
fn folders_are_f32_and_read_back_the_masters() {
    let folder = tempfile::tempdir().unwrap();
    let plain = decoder(1);
    let mut narrow = decoder(1).with_precision(BF16).unwrap();
    narrow.save(folder.path()).unwrap();
    let stored = weights::read(&folder.path().join("model.safetensors")).unwrap();
    assert_eq!(stored.len(), plain.params().len());
    for (name, tensor) in &stored {
        assert!(equal(tensor, plain.params().get(name).unwrap()), "{name}");
    }
    // Another model's weights are taken over by leaves and masters that stay.
    let other = decoder(2);
    other.save(folder.path()).unwrap();
    narrow.read_weights(folder.path()).unwrap();
    let (a, b) = (narrow, other.with_precision(BF16).unwrap());
    assert!(equal(
        &a.trunk().hidden(&ids(2, 5)).unwrap(),
        &b.trunk().hidden(&ids(2, 5)).unwrap()
    ));
    assert!(
        a.params()
            .iter()
            .zip(b.params().iter())
            .all(|((_, a), (_, b))| equal(a, b))
    );
    // A model of another shape is not taken over.
    let larger = common::decoder(&config(4, 2, 8, 2), 1, Kind::Float);
    larger.save(folder.path()).unwrap();
    let mut narrow = decoder(1);
    let error = narrow.read_weights(folder.path()).unwrap_err().to_string();
    assert!(error.contains("no such tensor"), "{error}");
}

#[test]
fn states_and_logits_are_those_of_f32_within_the_rounding() {
    let (plain, narrow) = (decoder(1), decoder(1).with_precision(BF16).unwrap());
    let ids = ids(4, 12);
    let (a, b) = (plain.hidden(&ids).unwrap(), narrow.hidden(&ids).unwrap());
    assert_eq!(b.kind(), Kind::BFloat16);
    let difference = largest(&(&a - b.to_kind(Kind::Float)));
    // 8 bits of mantissa, three blocks, states of norm 1 a number.
    assert!((1e-4..0.1).contains(&difference), "{difference}");
    let classifier = |decoder| SequenceClassifier::from_trunk(decoder, &mut ChaCha8Rng::seed_from_u64(1)).unwrap();
    let lengths = Tensor::from_slice(&[12_i64, 5, 1, 7]);
    let expected = classifier(plain).logits(&ids, &lengths).unwrap();
    // Made from a narrow decoder, a classifier has its masters.
    let from_narrow = classifier(narrow);
    assert!(equal(&from_narrow.logits(&ids, &lengths).unwrap(), &expected));
    let logits = from_narrow
        .with_precision(BF16)
        .unwrap()
        .logits(&ids, &lengths)
        .unwrap();
    assert_eq!(logits.kind(), Kind::Float);
    assert!(largest(&(logits - expected)) < 0.05);
}

/// The norm in f32, rounded, times the weight: two roundings, in this order.
#[test]
fn norms_round_where_hugging_face_rounds() {
    let narrow = decoder(1).with_precision(BF16).unwrap();
    let weight = narrow
        .params()
        .trainable()
        .find(|p| p.name() == "model.norm.weight")
        .unwrap();
    let drawn = decoder(2);
    let drawn = drawn.params().get("model.embed_tokens.weight").unwrap().detach().get(0);
    tch::no_grad(|| weight.value().shallow_clone().copy_(&(drawn + 1.0)));
    let x = narrow.trunk().states_below(&ids(4, 12), 3).unwrap();
    let found = narrow.trunk().hidden_above(&x, 3, None).unwrap();
    let wide = x.to_kind(Kind::Float);
    let mean = (&wide * &wide).mean_dim([-1_i64].as_slice(), true, Kind::Float);
    let normed = &wide * (mean + narrow.config().norm_eps).rsqrt();
    let expected = normed.to_kind(Kind::BFloat16) * weight.value();
    assert!(equal(&found.detach(), &expected.detach()));
}

#[test]
fn generation_works_in_bf16_and_its_log_probs_are_f32() {
    let narrow = decoder(1).with_precision(BF16).unwrap();
    let prompts: Vec<Vec<u32>> = vec![vec![1, 2, 3], vec![4], vec![5, 6]];
    let sampling = Sampling::greedy(5);
    let made = Generation::new(&narrow, &sampling, &[0]).run(&prompts).unwrap();
    let scored = |prompt: &[u32], ids: &[u32]| {
        let all: Vec<i64> = prompt.iter().chain(ids).map(|&id| i64::from(id)).collect();
        let n = all.len() as i64;
        let hidden = narrow.hidden(&Tensor::from_slice(&all).view([1, n])).unwrap();
        let rows = hidden.get(0).narrow(0, prompt.len() as i64 - 1, ids.len() as i64);
        let targets = Tensor::from_slice(&all[prompt.len()..]);
        Vec::<f32>::try_from(unsay_model::logps(&narrow, &rows, &targets).unwrap()).unwrap()
    };
    let mut compared = 0;
    for (prompt, made) in prompts.iter().zip(&made) {
        for (a, b) in made.logps.iter().zip(scored(prompt, &made.ids)) {
            assert!((a - b).abs() < 0.05, "{a} {b}");
            compared += 1;
        }
    }
    assert!(compared >= 10, "{compared}");
}

#[test]
fn f64_models_are_not_made_narrow() {
    let double = || common::decoder(&config(4, 2, 8, 1), 1, Kind::Double);
    let error = double().with_precision(BF16).unwrap_err().to_string();
    assert!(
        error.contains("to be made BFloat16: expected Float, got Double"),
        "{error}"
    );
    let same = double().with_precision(Precision::default()).unwrap();
    assert_eq!(same.trunk().kind().unwrap(), Kind::Double);
}

fn lora(layers: &[usize]) -> LoraConfig {
    LoraConfig {
        r: 2,
        alpha: 4.0,
        target_modules: TargetModules::AllLinear,
        layers: Some(Layers::List(layers.to_vec())),
        use_rslora: false,
    }
}

#[test]
fn an_adapter_is_a_trained_part_with_masters() {
    let rng = || ChaCha8Rng::seed_from_u64(1);
    let trained = |layers: &[usize]| Trained::Lora(lora(layers));
    let adapted = || decoder(1).with_trained(&trained(&[2]), &mut rng()).unwrap();
    let narrow = adapted().with_precision(BF16).unwrap();
    assert_eq!(narrow.params().n_frozen(), 2);
    // Seven linear maps with two thin ones each.
    assert_eq!(narrow.params().trainable().filter(|p| p.master().is_some()).count(), 14);
    // The same settings in other words go on with the adapter that is there; others would be a second one.
    let range = LoraConfig {
        layers: Some(Layers::Range { first: 2, last: 2 }),
        ..lora(&[2])
    };
    let narrow = narrow.with_trained(&Trained::Lora(range), &mut rng()).unwrap();
    let again = adapted().with_trained(&trained(&[1]), &mut rng()).unwrap_err();
    assert!(again.to_string().contains("a model without an adapter"), "{again}");
    // What a folder holds is taken over by masters and leaves.
    let folder = tempfile::tempdir().unwrap();
    let other = adapted();
    for param in other.params().trainable() {
        let _ = tch::no_grad(|| param.value().shallow_clone().fill_(0.123));
    }
    other.save_adapter(folder.path(), "base").unwrap();
    let mut narrow = narrow;
    narrow.read_adapter(folder.path()).unwrap();
    for param in narrow.params().trainable() {
        assert!(equal(&param.full().detach(), &(param.full().detach() * 0.0 + 0.123)));
        assert!(equal(&param.value().detach(), &param.full().to_kind(Kind::BFloat16)));
    }
    let mut elsewhere = decoder(1).with_trained(&trained(&[1]), &mut rng()).unwrap();
    assert!(elsewhere.read_adapter(folder.path()).is_err());
    assert!(decoder(1).read_adapter(folder.path()).is_err());
    // Rounded weights are no place to merge into.
    let error = narrow.merge_adapter().unwrap_err().to_string();
    assert!(error.contains("expected Float or Double, got BFloat16"), "{error}");
}

#[test]
fn left_padding_in_bf16_is_near_f32() {
    let (plain, narrow) = (decoder(1), decoder(1).with_precision(BF16).unwrap());
    let real = ids(3, 9).ones_like().to_kind(Kind::Bool);
    let _ = real.narrow(1, 0, 4).get(1).fill_(0);
    let hidden = |decoder: &Decoder| {
        decoder
            .hidden_with_mask(&ids(3, 9), &real)
            .unwrap()
            .to_kind(Kind::Float)
    };
    let seen = real.unsqueeze(-1);
    let difference = largest(&((hidden(&plain) - hidden(&narrow)) * seen));
    assert!((1e-4..0.1).contains(&difference), "{difference}");
}
