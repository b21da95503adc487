//! Value head, DIRECTOR head, classifiers of several labels, and generation with a guide.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs;
use std::path::Path;

use common::{config, decoder, random, random_ids};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor, no_grad};
use unsay_model::{
    Decoder, DirectorForm, DirectorHead, Generation, Guide, Params, Sampling, SequenceClassifier, ValueHead, weights,
};

const OWN: DirectorForm = DirectorForm::Own {};
const SHARED: DirectorForm = DirectorForm::Shared {};

fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

fn model(kind: Kind) -> Decoder {
    tch::set_num_threads(1);
    decoder(&config(4, 2, 4, 2), 1, kind)
}

fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!((a.size(), a.kind()), (b.size(), b.kind()));
    (a - b).detach().abs().max().double_value(&[])
}

/// Moves every parameter away from where it began.
fn moved(params: &Params) {
    for (seed, (_, tensor)) in (70..).zip(params.iter()) {
        no_grad(|| tensor.shallow_clone().copy_(&random(&tensor.size(), seed)));
    }
}

/// The gradient of `f` against central differences, in every number of each leaf.
fn check_gradients(leaves: &[Tensor], f: impl Fn() -> Tensor) -> usize {
    f().backward();
    let step = 1e-5;
    let mut compared = 0;
    for leaf in leaves {
        let flat = leaf.detach().view([-1]);
        for i in 0..flat.size()[0] {
            let number = flat.double_value(&[i]);
            let at = |value: f64| {
                let _ = no_grad(|| flat.get(i).fill_(value));
                no_grad(|| f().double_value(&[]))
            };
            let slope = (at(number + step) - at(number - step)) / (2.0 * step);
            let _ = at(number);
            let gradient = leaf.grad().reshape([-1]).double_value(&[i]);
            assert!(
                (gradient - slope).abs() < 1e-7 * (1.0 + slope.abs()),
                "{gradient} and {slope}"
            );
            compared += 1;
        }
    }
    compared
}

#[test]
fn values_are_a_linear_map_of_the_states() {
    for kind in [Kind::Float, Kind::Double] {
        let model = model(kind);
        let head = ValueHead::init(&model, &mut rng(3)).unwrap();
        let ids = Tensor::from_slice(&random_ids(10, 31, 4)).view([2, 5]);
        let states = model.hidden(&ids).unwrap();
        let weight = head.params().get("v_head.summary.weight").unwrap();
        let bias = head.params().get("v_head.summary.bias").unwrap();
        assert_eq!((weight.size(), bias.size()), (vec![1, 16], vec![1]));
        assert!(bias.abs().max().double_value(&[]) == 0.0 && weight.abs().max().double_value(&[]) > 0.1);
        moved(head.params());
        let expected = (&states * weight.view([16])).sum_dim_intlist([-1].as_slice(), false, None::<Kind>) + bias;
        let values = head.values(&states).unwrap();
        assert_eq!(values.size(), [2, 5]);
        assert!(difference(&values, &expected) < if kind == Kind::Double { 1e-12 } else { 1e-4 });
        // Narrow states are read in the head's own kind.
        assert_eq!(head.values(&states.to_kind(Kind::BFloat16)).unwrap().kind(), kind);
        assert!(head.values(&states.narrow(2, 0, 3)).is_err());
    }
}

#[test]
fn gradients_of_heads_equal_finite_differences() {
    let model = model(Kind::Double);
    model.params().iter().for_each(|(_, t)| {
        let _ = t.set_requires_grad(false);
    });
    let states = random(&[3, 16], 8).set_requires_grad(true);
    let leaves = |params: &Params| -> Vec<Tensor> {
        let own = params.iter().map(|(_, t)| t.shallow_clone());
        own.chain([states.shallow_clone()]).collect()
    };
    let clear = || {
        let mut grad = states.grad();
        let _ = grad.defined().then(|| grad.zero_());
    };
    let value = ValueHead::init(&model, &mut rng(3)).unwrap();
    moved(value.params());
    let n = check_gradients(&leaves(value.params()), || {
        value.values(&states).unwrap().tanh().sum(Kind::Double)
    });
    assert_eq!(n, 16 + 1 + 48);
    for (form, numbers) in [(OWN, 31 * 16 + 31 + 48), (SHARED, 2 + 48)] {
        clear();
        let head = DirectorHead::init(form, &model, &mut rng(3)).unwrap();
        moved(head.params());
        let n = check_gradients(&leaves(head.params()), || {
            head.logits(&model, &states).unwrap().tanh().sum(Kind::Double)
        });
        assert_eq!(n, numbers);
    }
}

#[test]
fn what_the_op_walks_through_are_the_logits() {
    for kind in [Kind::Float, Kind::Double] {
        let model = model(kind);
        let states = random(&[5, 16], 8).to_kind(kind);
        for form in [OWN, SHARED] {
            let head = DirectorHead::init(form, &model, &mut rng(3)).unwrap();
            assert_eq!(head.form(), form);
            moved(head.params());
            let inputs = head.inputs(&model, &states).unwrap();
            let product = inputs.hidden.matmul(&inputs.embedding.transpose(0, 1));
            let logits = match &inputs.affine {
                Some((scale, bias)) => {
                    assert!(scale.size().is_empty() && bias.size().is_empty());
                    product * scale + bias
                }
                None => product,
            };
            let expected = head.logits(&model, &states).unwrap();
            assert_eq!(expected.size(), [5, 31]);
            assert!(difference(&logits, &expected) < if kind == Kind::Double { 1e-12 } else { 1e-4 });
            assert!(head.inputs(&model, &states.view([1, 5, 16])).is_err());
            assert!(head.logits(&model, &states.narrow(1, 0, 4)).is_err());
        }
    }
}

#[test]
fn a_new_director_head_is_undecided() {
    let model = model(Kind::Double);
    let states = random(&[5, 16], 8);
    let own = DirectorHead::init(OWN, &model, &mut rng(3)).unwrap();
    let bias = own.params().get("classifier_heads.bias").unwrap();
    assert!(bias.abs().max().double_value(&[]) == 0.0);
    let shared = DirectorHead::init(SHARED, &model, &mut rng(3)).unwrap();
    let language = states.matmul(&model.output_embedding().transpose(0, 1));
    assert!(difference(&shared.logits(&model, &states).unwrap(), &language) < 1e-12);
}

fn bits(params: &Params) -> Vec<(String, Vec<f64>)> {
    let numbers = |t: &Tensor| Vec::try_from(t.detach().to_kind(Kind::Double).view([-1])).unwrap();
    params.iter().map(|(n, t)| (n.to_owned(), numbers(t))).collect()
}

#[test]
fn heads_lie_beside_a_plain_model_and_are_read_back() {
    for kind in [Kind::Float, Kind::Double] {
        let folder = tempfile::tempdir().unwrap();
        let model = model(kind);
        let value = ValueHead::init(&model, &mut rng(3)).unwrap();
        value.save(&folder.path().join("new")).unwrap();
        let back = ValueHead::load(&folder.path().join("new"), &model).unwrap();
        assert_eq!(bits(back.params()), bits(value.params()));
        assert!(back.params().iter().all(|(_, t)| t.kind() == kind && t.requires_grad()));
        let dir = folder.path();
        model.save(dir).unwrap();
        for (form, names) in [
            (OWN, vec!["classifier_heads.weight", "classifier_heads.bias"]),
            (SHARED, vec!["classifier_heads.params"]),
        ] {
            let head = DirectorHead::init(form, &model, &mut rng(3)).unwrap();
            moved(head.params());
            head.save(dir).unwrap();
            let back = DirectorHead::load(dir, &model).unwrap();
            assert_eq!((back.form(), bits(back.params())), (form, bits(head.params())));
            let stored = weights::read(&dir.join("director_head.safetensors")).unwrap();
            assert_eq!(stored.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(), names);
        }
        assert_eq!(
            bits(Decoder::load(dir, Device::Cpu).unwrap().params()),
            bits(model.params())
        );
    }
}

#[test]
fn broken_heads_are_refused_with_their_place() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(Kind::Float);
    let value = |dir: &Path| ValueHead::load(dir, &model).unwrap_err().to_string();
    let director = |dir: &Path| DirectorHead::load(dir, &model).unwrap_err().to_string();
    assert!(value(folder.path()).contains("value_head.safetensors"));
    assert!(director(folder.path()).contains("director_head.safetensors"));
    let write = |name: &str, tensors: &[(&str, Tensor)]| {
        let tensors = tensors.iter().map(|(n, t)| (*n, t));
        weights::write(&folder.path().join(name), tensors).unwrap();
    };
    let ones = |shape: &[i64]| Tensor::ones(shape, (Kind::Float, Device::Cpu));
    write("value_head.safetensors", &[("v_head.summary.weight", ones(&[1, 16]))]);
    assert!(value(folder.path()).contains("missing tensor `v_head.summary.bias`"));
    write(
        "value_head.safetensors",
        &[
            ("v_head.summary.weight", ones(&[1, 15])),
            ("v_head.summary.bias", ones(&[1])),
        ],
    );
    assert!(value(folder.path()).contains("expected shape [1, 16], got [1, 15]"));
    write("director_head.safetensors", &[("classifier_heads.params", ones(&[3]))]);
    assert!(director(folder.path()).contains("expected shape [2], got [3]"));
    write(
        "director_head.safetensors",
        &[
            ("classifier_heads.weight", ones(&[31, 16]) * f64::NAN),
            ("classifier_heads.bias", ones(&[31])),
        ],
    );
    assert!(director(folder.path()).contains("`classifier_heads.weight` holds NaN"));
    fs::write(folder.path().join("director_head.safetensors"), [0xff; 64]).unwrap();
    assert!(director(folder.path()).contains("not a safetensors file"));
}

fn small_classifier(labels: usize) -> (SequenceClassifier, Tensor, Tensor) {
    let mut config = config(4, 2, 4, 2);
    config.pad_token_id = Some(0);
    config
        .other
        .insert("id2label".to_owned(), json!({"0": "of another head"}));
    let trunk = decoder(&config, 1, Kind::Double);
    let classifier = SequenceClassifier::with_labels(trunk, labels, &mut rng(6)).unwrap();
    let ids = Tensor::from_slice(&random_ids(12, 31, 5)).view([2, 6]);
    (classifier, ids, Tensor::from_slice(&[6_i64, 2]))
}

#[test]
fn a_classifier_has_a_logit_per_label() {
    tch::set_num_threads(1);
    for labels in [1, 2, 5] {
        let (classifier, ids, lengths) = small_classifier(labels);
        let logits = classifier.logits(&ids, &lengths).unwrap();
        let expected = if labels == 1 { vec![2] } else { vec![2, labels as i64] };
        assert_eq!((logits.size(), classifier.num_labels()), (expected, labels));
        let folder = tempfile::tempdir().unwrap();
        classifier.save(folder.path()).unwrap();
        let back = SequenceClassifier::load(folder.path(), Device::Cpu).unwrap();
        assert_eq!(back.logits(&ids, &lengths).unwrap(), logits);
        assert_eq!((back.num_labels(), back.config()), (labels, classifier.config()));
    }
    for labels in [0, 1 << 20] {
        let trunk = decoder(&config(1, 1, 2, 1), 1, Kind::Float);
        let error = SequenceClassifier::with_labels(trunk, labels, &mut rng(6))
            .unwrap_err()
            .to_string();
        assert_eq!(error, format!("`num_labels`: expected 1 to 65536, got {labels}"));
    }
}

#[test]
fn labels_are_counted_like_transformers_counts_them() {
    let folder = tempfile::tempdir().unwrap();
    let names = json!({"0": "fine", "1": "odd", "2": "bad"});
    let cases = [
        (3, json!({"num_labels": 3}), Ok(())),
        (3, json!({"num_labels": null, "id2label": names}), Ok(())),
        (3, json!({"num_labels": 3, "id2label": names}), Ok(())),
        (2, json!({"num_labels": null}), Ok(())),
        (
            3,
            json!({"num_labels": null}),
            Err("expected shape [2, 16], got [3, 16]"),
        ),
        (
            3,
            json!({"num_labels": 2, "id2label": names}),
            Err("`num_labels` is 2 and `id2label` names 3"),
        ),
        (
            3,
            json!({"num_labels": 0}),
            Err("`num_labels`: expected 1 to 65536, got 0"),
        ),
        (
            3,
            json!({"num_labels": "3"}),
            Err("`num_labels`: expected a whole number"),
        ),
        (3, json!({"id2label": ["a"]}), Err("`id2label`: expected an object")),
    ];
    for (labels, change, expected) in cases {
        small_classifier(labels).0.save(folder.path()).unwrap();
        let path = folder.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for (name, value) in change.as_object().unwrap() {
            config[name] = value.clone();
        }
        fs::write(&path, config.to_string()).unwrap();
        let loaded = SequenceClassifier::load(folder.path(), Device::Cpu);
        match (loaded, expected) {
            (Ok(model), Ok(())) => {
                assert_eq!(model.num_labels(), labels);
                let kept = model.config().other.get("id2label").filter(|v| !v.is_null());
                assert_eq!(kept, change.get("id2label"));
            }
            (Err(error), Err(word)) => assert!(error.to_string().contains(word), "{change}: {error}"),
            (loaded, _) => panic!("{change}: {loaded:?}"),
        }
    }
}

#[test]
fn a_guide_decides_what_is_said() {
    let model = model(Kind::Double);
    let head = DirectorHead::init(OWN, &model, &mut rng(3)).unwrap();
    moved(head.params());
    let prompts = vec![vec![1, 2, 3], vec![4], vec![5, 6]];
    let gamma = 2.0;
    let scores = |states: &Tensor, logits: &Tensor| -> Tensor {
        let judged = head.logits(&model, states).unwrap().log_sigmoid();
        (logits.log_softmax(-1, Kind::Double) + judged * gamma).log_softmax(-1, Kind::Double)
    };
    let mut draw = |prompt: usize, step: usize| ((7 * prompt + 3 * step) % 10) as f32 / 10.0;
    for sampling in [Sampling::greedy(6), Sampling::new(6)] {
        let guide = |states: &Tensor, logits: &Tensor| Ok(scores(states, logits));
        let mut of = |guide: Option<&Guide<'_>>| {
            let plain = Generation::new(&model, &sampling, &[30]).batch(2).draws(&mut draw);
            let made = match guide {
                Some(guide) => plain.guide(guide),
                None => plain,
            };
            made.run(&prompts).unwrap()
        };
        let guided = of(Some(&guide));
        let plain = of(None);
        assert_ne!(guided, plain);
        let same = |_: &Tensor, logits: &Tensor| Ok(logits.shallow_clone());
        let unchanged = of(Some(&same));
        assert_eq!(unchanged, plain);
        // The log-probs are those of the two heads together.
        let mut compared = 0;
        for (prompt, said) in prompts.iter().zip(&guided) {
            let ids: Vec<i64> = prompt.iter().chain(&said.ids).map(|&id| i64::from(id)).collect();
            let states = model.hidden(&Tensor::from_slice(&ids).view([1, -1])).unwrap().get(0);
            let logits = states.matmul(&model.output_embedding().transpose(0, 1));
            let scores = scores(&states, &logits);
            for (i, (&id, &logp)) in said.ids.iter().zip(&said.logps).enumerate() {
                let at = (prompt.len() + i - 1) as i64;
                assert!((scores.double_value(&[at, i64::from(id)]) - f64::from(logp)).abs() < 1e-5);
                if sampling.greedy {
                    assert_eq!(scores.get(at).argmax(0, false).int64_value(&[]), i64::from(id));
                }
                compared += 1;
            }
        }
        assert!(compared > 6);
    }
}

#[test]
fn a_guide_that_fails_or_does_not_fit_is_an_error() {
    let model = model(Kind::Float);
    let prompts = vec![vec![1, 2, 3]];
    type Answer = fn(&Tensor) -> Result<Tensor, Box<dyn std::error::Error + Send + Sync>>;
    let cases: [(Answer, &str); 4] = [
        (|_| Err("no second head".into()), "guide of generation: no second head"),
        (
            |l| Ok(l.narrow(1, 0, 5)),
            "scores of the guide: expected [1, 31] of Float or Double, got [1, 5] of Float",
        ),
        (
            |l| Ok(l.to_kind(Kind::Int64)),
            "scores of the guide: expected [1, 31] of Float or Double, got [1, 31] of Int64",
        ),
        (
            |l| Ok(l * f64::NAN),
            "non-finite log-probability at prompt 0, new token 0",
        ),
    ];
    for (answer, expected) in cases {
        let guide = |_: &Tensor, logits: &Tensor| answer(logits);
        let sampling = Sampling::greedy(3);
        let found = Generation::new(&model, &sampling, &[30]).guide(&guide).run(&prompts);
        assert_eq!(found.unwrap_err().to_string(), expected);
    }
}
