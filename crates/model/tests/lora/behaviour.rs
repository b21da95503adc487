//! What an adapter does to a model: nothing at first, then what merging it does, and nothing while it is off.

use std::panic::{AssertUnwindSafe, catch_unwind};

use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor, no_grad};
use unsay_model::{
    Decoder, Error, Generation, Layers, LoraConfig, Params, Sampling, SequenceClassifier, TargetModules,
};

use crate::cases::{bits, logits};
use crate::common::{config, decoder, random, random_ids};

fn named(names: &[&str]) -> TargetModules {
    TargetModules::Named(names.iter().map(|&n| n.to_owned()).collect())
}

fn lora(target_modules: TargetModules) -> LoraConfig {
    LoraConfig {
        r: 3,
        alpha: 6.0,
        target_modules,
        layers: None,
        use_rslora: false,
    }
}

fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// Everything that is trained far from zero.
fn trained(params: &Params) {
    for (seed, param) in (50..).zip(params.trainable()) {
        let values = random(&param.value().size(), seed) * 0.5;
        no_grad(|| param.value().shallow_clone().copy_(&values));
    }
}

fn ids(rows: i64, width: i64) -> Tensor {
    Tensor::from_slice(&random_ids((rows * width) as usize, 31, 3)).view([rows, width])
}

#[test]
fn a_new_adapter_changes_nothing_and_begins_like_pefts() {
    tch::set_num_threads(1);
    for kind in [Kind::Float, Kind::Double] {
        let mut model = decoder(&config(4, 2, 8, 2), 1, kind);
        let (before, base) = (logits(&model, &ids(2, 9)).detach(), bits(model.params()));
        model.add_lora(&lora(TargetModules::AllLinear), &mut rng(2)).unwrap();
        assert_eq!(logits(&model, &ids(2, 9)).detach(), before);
        assert_eq!(bits(model.params())[..base.len()], base[..]);
        assert_eq!(model.params().len(), base.len() + 2 * 7 * 2);

        let get = |name: &str| {
            let name = format!("base_model.model.model.layers.1.{name}.weight");
            model.params().get(&name).unwrap().detach()
        };
        let a = get("mlp.down_proj.lora_A");
        assert_eq!((a.size(), a.kind()), (vec![3, 97], kind));
        assert_eq!(get("mlp.down_proj.lora_B").size(), [32, 3]);
        assert_eq!(get("self_attn.k_proj.lora_B").size(), [16, 3]);
        assert!(get("mlp.down_proj.lora_B").abs().max().double_value(&[]) == 0.0);
        // Uniform in ±1/√97: 291 draws come near both ends and spread by a √3-th of the bound.
        let (least, most) = (a.min().double_value(&[]), a.max().double_value(&[]));
        let bound = 1.0 / 97_f64.sqrt();
        assert!(least >= -bound && most <= bound && least < -0.9 * bound && most > 0.9 * bound);
        let spread = a.to_kind(Kind::Double).std(true).double_value(&[]) / (bound / 3_f64.sqrt());
        assert!((spread - 1.0).abs() < 0.1, "{spread}");
    }
    let draw = |kind| {
        let mut model = decoder(&config(4, 2, 8, 2), 1, kind);
        model.add_lora(&lora(named(&["q_proj"])), &mut rng(2)).unwrap();
        let name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
        model.params().get(name).unwrap().detach().to_kind(Kind::Float)
    };
    assert_eq!(draw(Kind::Float), draw(Kind::Double));
}

#[test]
fn gradients_reach_the_adapter_alone() {
    tch::set_num_threads(1);
    let mut model = decoder(&config(4, 2, 4, 2), 1, Kind::Double);
    model
        .add_lora(&lora(named(&["v_proj", "up_proj"])), &mut rng(2))
        .unwrap();
    trained(model.params());
    let head = model.output_embedding();
    assert!(!head.requires_grad());
    logits(&model, &ids(2, 5)).square().sum(Kind::Double).backward();
    let (mut reached, mut frozen) = (0, 0);
    for (name, tensor) in model.params().iter() {
        if name.contains(".lora_") {
            assert!(tensor.grad().abs().max().double_value(&[]) > 0.0, "{name}");
            reached += 1;
        } else {
            assert!(!tensor.requires_grad() && !tensor.grad().defined(), "{name}");
            frozen += 1;
        }
    }
    assert_eq!((reached, frozen), (8, 20));
    assert_eq!(model.params().trainable().count(), 8);
}

#[test]
fn off_is_the_base_whatever_happens_meanwhile() {
    tch::set_num_threads(1);
    let mut model = decoder(&config(4, 2, 4, 2), 1, Kind::Float);
    let ids = ids(2, 5);
    let base = logits(&model, &ids).detach();
    let error = model.without_adapter(|d| d.hidden(&ids)).unwrap_err().to_string();
    assert_eq!(error, "adapter: expected a model with an adapter, got one without");
    model.add_lora(&lora(TargetModules::AllLinear), &mut rng(2)).unwrap();
    trained(model.params());
    let on = logits(&model, &ids).detach();
    assert_ne!(on, base);

    let off = || model.without_adapter(|d| Ok::<_, Error>(logits(d, &ids))).unwrap();
    assert_eq!(off(), base);
    assert!(!off().requires_grad());
    let nested = model.without_adapter(|d| {
        let _ = d.without_adapter(|d| d.hidden(&ids))?;
        Ok::<_, Error>(logits(d, &ids))
    });
    assert_eq!(nested.unwrap(), base);
    let refused = model.without_adapter(|d| d.hidden(&Tensor::from_slice(&[1_i64])));
    assert!(refused.is_err());
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        model.without_adapter(|_| -> Result<(), Error> { panic!("on purpose") })
    }));
    assert!(panicked.is_err());
    let after = logits(&model, &ids);
    assert!(after.requires_grad() && after.detach() == on);
}

#[test]
fn models_move_between_threads() {
    fn moves<T: Send>(_: &T) {}
    let mut model = decoder(&config(1, 1, 2, 1), 1, Kind::Float);
    model.add_lora(&lora(TargetModules::AllLinear), &mut rng(2)).unwrap();
    moves(&model);
    let hidden = std::thread::spawn(move || model.hidden(&ids(1, 3)).unwrap().size());
    assert_eq!(hidden.join().unwrap(), [1, 3, 2]);
}

#[test]
fn one_adapter_at_a_time_and_none_in_a_model_folder() {
    let mut model = decoder(&config(4, 2, 4, 2), 1, Kind::Float);
    let settings = lora(TargetModules::AllLinear);
    let folder = tempfile::tempdir().unwrap();
    assert!(model.save_adapter(folder.path(), "base").is_err());
    model.add_lora(&settings, &mut rng(2)).unwrap();
    assert_eq!(model.adapter(), Some(&settings));
    let error = model.add_lora(&settings, &mut rng(2)).unwrap_err().to_string();
    assert_eq!(
        error,
        "adapter to put on: expected a model without an adapter, got one of rank 3\nhint: merge the first one"
    );
    model.save_adapter(folder.path(), "base").unwrap();
    let error = model.load_adapter(folder.path()).unwrap_err().to_string();
    assert!(error.contains("got one of rank 3"), "{error}");
    let error = model.save(folder.path()).unwrap_err().to_string();
    assert!(error.contains("hint: merge the adapter"), "{error}");

    trained(model.params());
    let (ids, on) = (ids(2, 5), logits(&model, &ids(2, 5)).detach());
    model.merge_adapter().unwrap();
    let merged = logits(&model, &ids).detach();
    assert!((&merged - on).abs().max().double_value(&[]) < 1e-3 * merged.abs().max().double_value(&[]));
    model.save(folder.path()).unwrap();
    let back = Decoder::load(folder.path(), Device::Cpu).unwrap();
    assert_eq!(logits(&back, &ids).detach(), merged);
    model.add_lora(&settings, &mut rng(3)).unwrap();
    assert_eq!(logits(&model, &ids).detach(), merged);
}

#[test]
fn generation_sees_the_adapter() {
    tch::set_num_threads(1);
    let mut model = decoder(&config(4, 2, 4, 2), 1, Kind::Double);
    let prompts = [vec![1, 2, 3], vec![4], vec![5, 6]];
    let say = |model: &Decoder| {
        let sampling = Sampling::greedy(8);
        Generation::new(model, &sampling, &[30]).batch(3).run(&prompts).unwrap()
    };
    let base = say(&model);
    model.add_lora(&lora(TargetModules::AllLinear), &mut rng(2)).unwrap();
    assert_eq!(say(&model), base);
    trained(model.params());
    let adapted = say(&model);
    assert_ne!(adapted, base);
    let off = model.without_adapter(|d| Ok::<_, Error>(say(d))).unwrap();
    assert_eq!(off, base);
    model.merge_adapter().unwrap();
    for (merged, adapted) in say(&model).iter().zip(&adapted) {
        assert_eq!(merged.ids, adapted.ids);
    }
}

#[test]
fn what_does_not_fit_the_model_is_refused_by_name() {
    let mut model = decoder(&config(4, 2, 4, 2), 1, Kind::Float);
    let base = bits(model.params());
    type Change = fn(&mut LoraConfig);
    let cases: [(&str, Change); 11] = [
        ("`r`: expected 1 to 4096, got 0", |c| c.r = 0),
        ("`r`: expected 1 to 4096, got 5000", |c| c.r = 5000),
        ("`alpha`: expected above 0 and at most 1e6, got 0", |c| c.alpha = 0.0),
        ("`alpha`: expected above 0 and at most 1e6, got NaN", |c| {
            c.alpha = f64::NAN
        }),
        ("`target_modules`: expected at least one name, got none", |c| {
            c.target_modules = named(&[])
        }),
        ("`target_modules`: expected distinct names, got `q_proj` twice", |c| {
            c.target_modules = named(&["q_proj", "v_proj", "q_proj"])
        }),
        (
            "`target_modules`: expected one of `q_proj`, `k_proj`, `v_proj`, `o_proj`, `gate_proj`, `up_proj`, `down_proj`, \
             got `proj`",
            |c| c.target_modules = named(&["q_proj", "proj"]),
        ),
        ("`layers`: expected block numbers below 2, got 2", |c| {
            c.layers = Some(Layers::Range { first: 1, last: 2 })
        }),
        ("`layers`: expected `first` at most `last`, got 1 to 0", |c| {
            c.layers = Some(Layers::Range { first: 1, last: 0 })
        }),
        ("`layers`: expected at least one block, got none", |c| {
            c.layers = Some(Layers::List(vec![]))
        }),
        ("`layers`: expected distinct block numbers, got 1 twice", |c| {
            c.layers = Some(Layers::List(vec![1, 0, 1]))
        }),
    ];
    for (expected, change) in cases {
        let mut settings = lora(TargetModules::AllLinear);
        change(&mut settings);
        let error = model.add_lora(&settings, &mut rng(1)).unwrap_err().to_string();
        assert_eq!(error, expected);
    }
    assert!(model.adapter().is_none());
    assert_eq!(bits(model.params()), base);
    assert_eq!(model.params().trainable().count(), model.params().len());
}

#[test]
fn a_classifier_trains_its_score_with_the_adapter() {
    tch::set_num_threads(1);
    let trunk = || decoder(&config(4, 2, 4, 2), 1, Kind::Double);
    let mut model = SequenceClassifier::with_labels(trunk(), 3, &mut rng(4)).unwrap();
    model.add_lora(&lora(named(&["q_proj"])), &mut rng(2)).unwrap();
    let names: Vec<&str> = model.params().trainable().map(|p| p.name()).collect();
    assert_eq!((names.len(), names[0]), (5, "score.weight"));
    trained(model.params());
    let (ids, lengths) = (ids(2, 5), Tensor::from_slice(&[5_i64, 3]));
    let logits = model.logits(&ids, &lengths).unwrap().detach();
    assert_eq!(logits.size(), [2, 3]);
    let folder = tempfile::tempdir().unwrap();
    model.save_adapter(folder.path(), "base").unwrap();
    let mut other = SequenceClassifier::with_labels(trunk(), 3, &mut rng(9)).unwrap();
    other.load_adapter(folder.path()).unwrap();
    assert_eq!(other.logits(&ids, &lengths).unwrap().detach(), logits);
    let mut narrow = SequenceClassifier::from_trunk(trunk(), &mut rng(9)).unwrap();
    let error = narrow.load_adapter(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("`base_model.model.score.weight`: expected shape [1, 16], got [3, 16]"),
        "{error}"
    );
    let mut language = trunk();
    let error = language.load_adapter(folder.path()).unwrap_err().to_string();
    assert!(error.contains("`task_type`: expected \"CAUSAL_LM\" or none"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn merging_is_what_the_adapter_adds(
        (groups, per_group, half, layers) in (1..3_usize, 1..3_usize, 1..4_usize, 1..4_usize),
        r in 1..6_usize,
        alpha in 0.25..8.0_f64,
        use_rslora: bool,
        chosen in proptest::sample::subsequence(
            vec!["q_proj", "k_proj", "self_attn.v_proj", "o_proj", "mlp.gate_proj", "up_proj", "down_proj"], 1..=7),
        first in 0..4_usize,
        seed: u64,
    ) {
        tch::set_num_threads(1);
        let mut model = decoder(&config(groups * per_group, groups, 2 * half, layers), seed, Kind::Double);
        let first = first % layers;
        let settings = LoraConfig {
            r,
            alpha,
            target_modules: named(&chosen),
            layers: Some(Layers::Range { first, last: layers - 1 }),
            use_rslora,
        };
        let ids = ids(2, 6);
        let base = logits(&model, &ids).detach();
        model.add_lora(&settings, &mut rng(seed)).unwrap();
        prop_assert_eq!(model.params().trainable().count(), 2 * chosen.len() * (layers - first));
        trained(model.params());
        let on = logits(&model, &ids).detach();
        prop_assert_ne!(&on, &base);
        let off = model.without_adapter(|d| Ok::<_, Error>(logits(d, &ids))).unwrap();
        prop_assert_eq!(off, base);
        model.merge_adapter().unwrap();
        let merged = logits(&model, &ids).detach();
        let difference = (&merged - &on).abs().max().double_value(&[]) / on.abs().max().double_value(&[]);
        prop_assert!(difference < 1e-10, "{:e}", difference);
    }
}
