//! An adapter learns a task with a known optimum while the base stays as it is.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor, no_grad};
use unsay_model::{Decoder, Error, LoraConfig, TargetModules};

use crate::cases::{bits, logits};
use crate::common::{config, decoder};

const TOKENS: i64 = 12;

/// After token t comes 5t + 1 modulo twelve: a permutation, so the best loss is zero.
fn task() -> (Tensor, Tensor) {
    let tokens = Tensor::arange(TOKENS, (Kind::Int64, tch::Device::Cpu));
    let next = (&tokens * 5 + 1).remainder(TOKENS);
    (tokens.view([TOKENS, 1]), next)
}

fn loss(model: &Decoder) -> Tensor {
    let (ids, next) = task();
    logits(model, &ids).squeeze_dim(1).cross_entropy_for_logits(&next)
}

#[test]
fn an_adapter_learns_what_comes_next() {
    tch::set_num_threads(1);
    let mut config = config(4, 2, 4, 2);
    // States leave the last norm with a fixed length: embeddings this long let a token be nearly certain.
    config.initializer_range = 1.0;
    let mut model = decoder(&config, 1, Kind::Float);
    let before = bits(model.params());
    let settings = LoraConfig {
        r: 8,
        alpha: 16.0,
        target_modules: TargetModules::AllLinear,
        layers: None,
        use_rslora: false,
    };
    model.add_lora(&settings, &mut ChaCha8Rng::seed_from_u64(2)).unwrap();
    let first = loss(&model).double_value(&[]);
    let leaves: Vec<Tensor> = model.params().trainable().map(|p| p.value().shallow_clone()).collect();
    let mut moments: Vec<(Tensor, Tensor)> = leaves.iter().map(|t| (t.zeros_like(), t.zeros_like())).collect();
    for step in 1..=400 {
        model.params().zero_grad().unwrap();
        loss(&model).backward();
        // Adam.
        let (b1, b2) = (0.9_f64, 0.99_f64);
        no_grad(|| {
            for (leaf, (m, v)) in leaves.iter().zip(&mut moments) {
                let grad = leaf.grad();
                *m = &*m * b1 + &grad * (1.0 - b1);
                *v = &*v * b2 + grad.square() * (1.0 - b2);
                let (m, v) = (&*m / (1.0 - b1.powi(step)), &*v / (1.0 - b2.powi(step)));
                let _ = leaf.shallow_clone().subtract_(&(m / (v.sqrt() + 1e-8) * 0.01));
            }
        });
    }
    let last = loss(&model).double_value(&[]);
    assert!(first > 1.5 && last < 0.01, "{first} to {last}");
    let reference = model
        .without_adapter(|d| Ok::<_, Error>(loss(d).double_value(&[])))
        .unwrap();
    assert!((reference - first).abs() < 1e-12);
    assert_eq!(bits(model.params())[..before.len()], before[..]);
}
