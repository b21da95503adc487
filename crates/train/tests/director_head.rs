//! DIRECTOR from states to replies: the model's second head through the op and the loss, and back out through generation.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use tch::{Device, Kind, Tensor, no_grad};
use unsay_data::stream;
use unsay_losses::director::{Director, DirectorCounts, DirectorLoss, decode};
use unsay_losses::{TokenOp, TokenRows};
use unsay_model::{Config, Decoder, DirectorForm, DirectorHead, Generation, Param, Params, Sampling, Size};

const VOCAB: i64 = 12;
const FORMS: [DirectorForm; 2] = [DirectorForm::Own {}, DirectorForm::Shared {}];

fn decoder(kind: Kind) -> Decoder {
    tch::set_num_threads(1);
    let size = Size {
        hidden_size: 16,
        intermediate_size: 24,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 2,
    };
    let config = Config {
        initializer_range: 0.6,
        ..Config::new(&size, VOCAB as usize, 16)
    };
    Decoder::init_kind(&config, &mut stream(3, "init", 0), Device::Cpu, kind).unwrap()
}

/// Rows of [B, T] ids and the tokens after each, flat.
fn text() -> (Tensor, Tensor) {
    let ids: Vec<i64> = (0..10).map(|i| (i * 7 + 3) % VOCAB).collect();
    let ids = Tensor::from_slice(&ids).view([2, 5]);
    (ids.narrow(1, 0, 4), ids.narrow(1, 1, 4).reshape([-1]))
}

/// Example 0 is unlabelled, example 1 negative.
fn rows() -> TokenRows {
    TokenRows::new(&[0, 0, 0, 0, 1, 1, 1, 1], &[true; 8], &[-1, 0], Device::Cpu).unwrap()
}

fn through_the_op(model: &Decoder, head: &DirectorHead, loss: &Director) -> Tensor {
    let (ids, targets) = text();
    let states = model.hidden(&ids).unwrap().view([8, -1]);
    let language = TokenOp::new(&states, &model.output_embedding(), &targets, &loss.generator_needs()).unwrap();
    let inputs = head.inputs(model, &states).unwrap();
    let mut second = TokenOp::new(&inputs.hidden, &inputs.embedding, &targets, &loss.classifier_needs()).unwrap();
    if let Some((scale, bias)) = &inputs.affine {
        second = second.with_affine(scale, bias).unwrap();
    }
    let (generator, classifier) = (language.forward().unwrap(), second.forward().unwrap());
    let counts = DirectorCounts::of(&rows()).unwrap();
    let value = loss.evaluate(&generator, &classifier, &rows(), &counts).unwrap();
    value.total.backward();
    (language.surrogate(&generator).unwrap() + second.surrogate(&classifier).unwrap()).backward();
    value.total.detach()
}

/// The same from full logits.
fn from_logits(model: &Decoder, head: &DirectorHead, gamma: f64) -> Tensor {
    let (ids, targets) = text();
    let states = model.hidden(&ids).unwrap().view([8, -1]);
    let language = states.linear(&model.output_embedding(), None::<&Tensor>);
    let of_target = |x: &Tensor| x.gather(1, &targets.unsqueeze(-1), false).squeeze_dim(-1);
    let nll = -of_target(&language.log_softmax(-1, Kind::Double))
        .narrow(0, 0, 4)
        .mean(Kind::Double);
    let judged = of_target(&head.logits(model, &states).unwrap()).narrow(0, 4, 4);
    let bce = -judged.neg().log_sigmoid().mean(Kind::Double);
    (nll + bce * gamma) / 2.0
}

fn gradients(params: [&Params; 2]) -> Vec<Tensor> {
    let of = |p: &Params| p.iter().map(|(_, t)| t.grad().copy()).collect::<Vec<_>>();
    let found = params.into_iter().flat_map(of).collect();
    params.iter().for_each(|p| p.zero_grad().unwrap());
    found
}

#[test]
fn gradients_equal_those_of_full_logits() {
    for form in FORMS {
        let model = decoder(Kind::Double);
        let head = DirectorHead::init(form, &model, &mut stream(3, "head", 0)).unwrap();
        let both = [model.params(), head.params()];
        let loss = Director::new(0.7);
        let value = through_the_op(&model, &head, &loss);
        let ours = gradients(both);
        let expected = from_logits(&model, &head, 0.7);
        expected.backward();
        assert!((value - expected.detach()).abs().double_value(&[]) < 1e-12);
        let mut compared = 0;
        for (ours, expected) in ours.iter().zip(gradients(both)) {
            assert!(expected.abs().max().double_value(&[]) > 0.0);
            let difference = (ours - expected).abs().max().double_value(&[]);
            assert!(difference < 1e-12, "{difference:e}");
            compared += 1;
        }
        assert_eq!(compared, both.iter().map(|p| p.len()).sum::<usize>());
    }
}

#[test]
fn a_trained_head_steers_generation_away_from_what_was_bad() {
    let model = decoder(Kind::Float);
    let head = DirectorHead::init(DirectorForm::Own {}, &model, &mut stream(3, "head", 0)).unwrap();
    let prompt: Vec<u32> = vec![3, 10, 5];
    let say = |gamma: f64| -> Vec<u32> {
        let guide = |states: &Tensor, logits: &Tensor| {
            let judged = head.logits(&model, states)?;
            Ok(decode(logits, &judged, gamma)?)
        };
        let (prompts, sampling) = ([prompt.clone()], Sampling::greedy(4));
        let end = [VOCAB as u32 - 1];
        let said = Generation::new(&model, &sampling, &end).guide(&guide).run(&prompts);
        said.unwrap()[0].ids.clone()
    };
    let before = say(0.0);
    assert_eq!(before.len(), 4);
    // What the model says by itself is bad from its first token on.
    let ids: Vec<i64> = prompt.iter().chain(&before).map(|&id| i64::from(id)).collect();
    let context = Tensor::from_slice(&ids[..6]).view([1, 6]);
    let targets = Tensor::from_slice(&ids[3..]);
    let rows = TokenRows::new(&[0; 4], &[true; 4], &[0], Device::Cpu).unwrap();
    let (loss, counts) = (Director::new(1.0), DirectorCounts::of(&rows).unwrap());
    for _ in 0..60 {
        head.params().zero_grad().unwrap();
        // The trunk stays as it is.
        let states = no_grad(|| model.hidden(&context).unwrap().get(0).narrow(0, 2, 4));
        let inputs = head.inputs(&model, &states).unwrap();
        let language = TokenOp::new(&states, &model.output_embedding(), &targets, &loss.generator_needs()).unwrap();
        let second = TokenOp::new(&inputs.hidden, &inputs.embedding, &targets, &loss.classifier_needs()).unwrap();
        let (generator, classifier) = (language.forward().unwrap(), second.forward().unwrap());
        let value = loss.evaluate(&generator, &classifier, &rows, &counts).unwrap();
        value.total.backward();
        second.surrogate(&classifier).unwrap().backward();
        no_grad(|| head.params().trainable().map(Param::value).for_each(step));
    }
    assert_eq!(say(0.0), before);
    let after = say(20.0);
    assert_ne!(after[0], before[0]);
}

fn step(leaf: &Tensor) {
    let _ = leaf.shallow_clone().subtract_(&(leaf.grad() * 0.5));
}
