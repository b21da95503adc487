//! The forward pass against one written with loops over plain arrays, which shares nothing with it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{config, decoder, random_ids, shapes};
use tch::{Kind, Tensor, no_grad};
use unsay_model::{Config, Decoder, Params};

/// A matrix in f64: rows of columns.
type Matrix = Vec<Vec<f64>>;

fn matrix(params: &Params, name: &str) -> Matrix {
    let tensor = params.get(name).unwrap_or_else(|| panic!("{name}"));
    let tensor = tensor.detach();
    let shape = tensor.size();
    let flat = Vec::<f64>::try_from(tensor.reshape([-1])).unwrap();
    let columns = *shape.last().unwrap() as usize;
    flat.chunks(columns).map(<[f64]>::to_vec).collect()
}

fn times(w: &Matrix, x: &[f64]) -> Vec<f64> {
    w.iter()
        .map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum())
        .collect()
}

fn norm(x: &[f64], w: &Matrix, eps: f64) -> Vec<f64> {
    let mean: f64 = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
    x.iter().zip(&w[0]).map(|(v, w)| v / (mean + eps).sqrt() * w).collect()
}

/// Turns the head that starts at `at` to its position, by the definition: pairs (i, i + d/2).
fn turn(x: &mut [f64], at: usize, dim: usize, position: usize, theta: f64) {
    for i in 0..dim / 2 {
        let angle = position as f64 / theta.powf(2.0 * i as f64 / dim as f64);
        let (a, b) = (x[at + i], x[at + i + dim / 2]);
        x[at + i] = a * angle.cos() - b * angle.sin();
        x[at + i + dim / 2] = b * angle.cos() + a * angle.sin();
    }
}

/// Logits of every position of one sequence.
fn naive_logits(config: &Config, params: &Params, ids: &[i64]) -> Matrix {
    let (heads, kv_heads, dim) = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
    let embedding = matrix(params, "model.embed_tokens.weight");
    let mut x: Matrix = ids.iter().map(|&id| embedding[id as usize].clone()).collect();
    for layer in 0..config.num_hidden_layers {
        let get = |name: &str| matrix(params, &format!("model.layers.{layer}.{name}.weight"));
        let before: Matrix = x
            .iter()
            .map(|x| norm(x, &get("input_layernorm"), config.norm_eps))
            .collect();
        let mut q: Matrix = before.iter().map(|x| times(&get("self_attn.q_proj"), x)).collect();
        let mut k: Matrix = before.iter().map(|x| times(&get("self_attn.k_proj"), x)).collect();
        let v: Matrix = before.iter().map(|x| times(&get("self_attn.v_proj"), x)).collect();
        for t in 0..x.len() {
            (0..heads).for_each(|h| turn(&mut q[t], h * dim, dim, t, config.rope_theta));
            (0..kv_heads).for_each(|h| turn(&mut k[t], h * dim, dim, t, config.rope_theta));
        }
        for t in 0..x.len() {
            let mut mixed = vec![0.0; heads * dim];
            for h in 0..heads {
                let g = h / (heads / kv_heads);
                let score = |s: usize| {
                    (0..dim).map(|i| q[t][h * dim + i] * k[s][g * dim + i]).sum::<f64>() / (dim as f64).sqrt()
                };
                let weights: Vec<f64> = (0..=t).map(|s| score(s).exp()).collect();
                let total: f64 = weights.iter().sum();
                for (s, weight) in weights.iter().enumerate() {
                    for i in 0..dim {
                        mixed[h * dim + i] += weight / total * v[s][g * dim + i];
                    }
                }
            }
            let out = times(&get("self_attn.o_proj"), &mixed);
            x[t].iter_mut().zip(out).for_each(|(x, o)| *x += o);
            let inner = norm(&x[t], &get("post_attention_layernorm"), config.norm_eps);
            let up = times(&get("mlp.up_proj"), &inner);
            let gate = times(&get("mlp.gate_proj"), &inner);
            let gated: Vec<f64> = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            let out = times(&get("mlp.down_proj"), &gated);
            x[t].iter_mut().zip(out).for_each(|(x, o)| *x += o);
        }
    }
    let head = if config.tie_word_embeddings {
        embedding
    } else {
        matrix(params, "lm_head.weight")
    };
    let last = matrix(params, "model.norm.weight");
    x.iter()
        .map(|x| times(&head, &norm(x, &last, config.norm_eps)))
        .collect()
}

fn logits(decoder: &Decoder, ids: &Tensor) -> Tensor {
    no_grad(|| {
        decoder
            .hidden(ids)
            .unwrap()
            .linear(&decoder.output_embedding(), None::<&Tensor>)
    })
}

#[test]
fn logits_equal_the_naive_forward_pass() {
    tch::set_num_threads(1);
    let mut checked = 0;
    for (i, (heads, kv_heads, head_dim, layers, tied)) in shapes().into_iter().enumerate() {
        let config = Config {
            tie_word_embeddings: tied,
            ..config(heads, kv_heads, head_dim, layers)
        };
        let decoder = decoder(&config, i as u64, Kind::Double);
        let (rows, width) = (2, 9);
        let ids = random_ids(rows * width, config.vocab_size, i as u64);
        let found = logits(&decoder, &Tensor::from_slice(&ids).view([rows as i64, width as i64]));
        for (row, ids) in ids.chunks(width).enumerate() {
            let expected: Vec<f64> = naive_logits(&config, decoder.params(), ids).concat();
            let found = Vec::<f64>::try_from(found.get(row as i64).reshape([-1])).unwrap();
            let worst = found
                .iter()
                .zip(&expected)
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f64::max);
            let scale = expected.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
            assert!(scale > 0.1 && worst < 1e-9, "{config:?}: {worst:e} of {scale}");
            checked += 1;
        }
    }
    assert_eq!(checked, 12);
}

#[test]
fn padding_on_either_side_changes_nothing() {
    tch::set_num_threads(1);
    let config = config(6, 2, 4, 2);
    let decoder = decoder(&config, 3, Kind::Double);
    let ids = random_ids(5, config.vocab_size, 8);
    let alone = no_grad(|| decoder.hidden(&Tensor::from_slice(&ids).view([1, 5])).unwrap());
    let pad = [7_i64; 3];
    let right = Tensor::from_slice(&[&ids[..], &pad].concat()).view([1, 8]);
    let left = Tensor::from_slice(&[&pad, &ids[..]].concat()).view([1, 8]);
    let real = Tensor::from_slice(&[false, false, false, true, true, true, true, true]).view([1, 8]);
    let right = no_grad(|| decoder.hidden(&right).unwrap().narrow(1, 0, 5));
    let left = no_grad(|| decoder.hidden_with_mask(&left, &real).unwrap());
    assert!(left.isfinite().all().int64_value(&[]) == 1);
    for padded in [right, left.narrow(1, 3, 5)] {
        let difference = (&padded - &alone).abs().max().double_value(&[]);
        assert!(difference < 1e-12, "{difference:e}");
    }
}

#[test]
fn gradients_equal_finite_differences() {
    tch::set_num_threads(1);
    let config = config(4, 2, 4, 2);
    let decoder = decoder(&config, 5, Kind::Double);
    let ids = Tensor::from_slice(&random_ids(14, config.vocab_size, 1)).view([2, 7]);
    let weights = Tensor::from_slice(&random_ids(14 * 16, 100, 2))
        .to_kind(Kind::Double)
        .view([2, 7, 16])
        / 50.0
        - 1.0;
    let loss = || (decoder.hidden(&ids).unwrap() * &weights).sum(Kind::Double);
    loss().backward();
    let mut checked = 0;
    for (name, tensor) in decoder.params().iter() {
        let at = (tensor.numel() / 2) as i64;
        let slope = tensor.grad().reshape([-1]).double_value(&[at]);
        let moved = |by: f64| {
            no_grad(|| {
                let _ = tensor.detach().view([-1]).narrow(0, at, 1).g_add_scalar_(by);
                loss().double_value(&[])
            })
        };
        let h = 1e-5;
        let difference = (moved(h) - moved(-2.0 * h)) / (2.0 * h);
        let _ = moved(h);
        assert!(
            (slope - difference).abs() < 1e-5 * (1.0 + slope.abs()),
            "{name}: {slope} {difference}"
        );
        checked += 1;
    }
    assert_eq!(checked, 2 + 9 * 2);
    decoder.params().zero_grad().unwrap();
    assert!(
        decoder
            .params()
            .iter()
            .all(|(_, t)| t.grad().abs().max().double_value(&[]) == 0.0)
    );
}

#[test]
fn input_that_does_not_fit_is_an_error() {
    let config = config(4, 2, 4, 1);
    let decoder = decoder(&config, 0, Kind::Float);
    let long = config.max_position_embeddings as i64 + 1;
    let int = (Kind::Int64, tch::Device::Cpu);
    let bad = [
        (Tensor::zeros([3], int), "[B, T]"),
        (Tensor::zeros([0, 3], int), "non-empty"),
        (Tensor::zeros([1, 3], (Kind::Float, tch::Device::Cpu)), "Int64"),
        (Tensor::zeros([1, long], int), "sequence length"),
        (
            Tensor::from_slice(&[0_i64, config.vocab_size as i64]).view([1, 2]),
            "token id",
        ),
        (Tensor::from_slice(&[-1_i64, 0]).view([1, 2]), "token id"),
    ];
    for (ids, word) in bad {
        let error = decoder.hidden(&ids).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}
