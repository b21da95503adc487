//! The way back in two passes: what is kept, what is walked over in portions, and who gets a gradient.

use tch::{Device, Kind, Tensor};
use unsay_losses::{Needs, TokenOp};

use crate::ALL;
use crate::plain::{self, Made, Numbers, difference, numbers};

/// Past the budget the first chunks are read again and the last computed again.
#[test]
fn kept_and_recomputed_chunks_meet() {
    tch::set_num_threads(1);
    let mut made = Numbers::new(2);
    let (n, v) = (5i64, 5i64 << 20);
    let embedding = Tensor::linspace(-3.0, 3.0, v, (Kind::Float, Device::Cpu)).view([v, 1]);
    let hidden = made.tensor(&[n, 1], 2.0).to_kind(Kind::Float).set_requires_grad(true);
    let targets = Tensor::from_slice(&[0, 7, v - 1, v / 2, 3]);
    // Chunks of five million logits: three are within sixteen million, two are not.
    let op = TokenOp::new(&hidden, &embedding, &targets, &Needs::default())
        .unwrap()
        .with_chunk_rows(1);
    let stats = op.forward().unwrap();
    (&stats.logp * Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0, 5.0]))
        .sum(Kind::Float)
        .backward();
    let gradient = |op: &TokenOp| {
        hidden.grad().defined().then(|| hidden.grad().zero_());
        op.surrogate(&stats).unwrap().backward();
        numbers(&hidden.grad())
    };
    let (kept, recomputed) = (gradient(&op), gradient(&op));
    assert_eq!(kept, recomputed);
    assert!(kept.iter().all(|g| g.abs() > 1e-3));
}

/// States so wide that single logits are walked over two at a time, the target of one row among the largest of it.
#[test]
fn single_logits_come_in_portions() {
    tch::set_num_threads(1);
    let (n, v, d) = (3i64, 4i64, 3i64 << 20);
    let wave = |rows: i64, speed: f64| {
        let line = Tensor::linspace(0.0, speed, rows * d, (Kind::Float, Device::Cpu));
        (line.sin() * 1e-3).view([rows, d]).set_requires_grad(true)
    };
    let targets = Tensor::from_slice(&[1i64, 3, 3]);
    let needs = Needs {
        top_k: 2,
        target_logit: true,
        ..Needs::default()
    };
    let mut gradients = Vec::new();
    for through_op in [true, false] {
        let (hidden, embedding) = (wave(n, 9e4), wave(v, 7e4));
        let op = TokenOp::new(&hidden, &embedding, &targets, &needs).unwrap();
        let stats = match through_op {
            true => op.forward().unwrap(),
            false => plain::stats(&hidden.matmul(&embedding.tr()), &targets, &needs),
        };
        let weights = Tensor::from_slice(&[1.0f32, -2.0, 3.0]);
        let value = (stats.target_logit.as_ref().unwrap() * &weights).sum(Kind::Float)
            + (stats.top_logits.as_ref().unwrap() * weights.unsqueeze(1)).sum(Kind::Float) * 0.5;
        value.backward();
        if through_op {
            op.surrogate(&stats).unwrap().backward();
        }
        gradients.push((hidden.grad() * 1e3, embedding.grad() * 1e3));
    }
    assert!(difference(&gradients[0].0, &gradients[1].0) < 1e-5);
    assert!(difference(&gradients[0].1, &gradients[1].1) < 1e-5);
    assert!(gradients[0].1.abs().max().double_value(&[]) > 1.0);
}

#[test]
fn only_what_is_trained_gets_a_gradient() {
    let made = Made::new(4, &[5], &[1], 3, 7);
    let targets = Tensor::from_slice(&made.targets);
    let [scale, bias] = [2.0, 0.5].map(Tensor::from);
    let mut tried = 0;
    for trained in 0..4 {
        for in_place in [false, true] {
            let all = [&made.hidden, &made.embedding, &scale, &bias].map(Tensor::detach);
            let _ = all[trained].set_requires_grad(true);
            let needs = Needs {
                log_sum_exp: true,
                target_logit: true,
                ..Needs::default()
            };
            let op = TokenOp::new(&all[0], &all[1], &targets, &needs).and_then(|op| op.with_affine(&all[2], &all[3]));
            let op = if in_place {
                op.unwrap().with_gradient_in_place()
            } else {
                op.unwrap()
            };
            let stats = op.forward().unwrap();
            (stats.log_sum_exp.as_ref().unwrap() + stats.target_logit.as_ref().unwrap())
                .sum(Kind::Double)
                .backward();
            op.surrogate(&stats).unwrap().backward();
            for (at, t) in all.iter().enumerate() {
                assert_eq!(t.grad().defined(), at == trained, "{trained}: {at}");
            }
            assert!(all[trained].grad().abs().min().double_value(&[]) > 0.0);
            tried += 1;
        }
    }
    assert_eq!(tried, 8);
}

#[test]
fn stats_without_a_gradient_give_none_and_a_frozen_side_is_left_out() {
    let mut made = Numbers::new(1);
    let hidden = made.tensor(&[3, 2], 1.0).set_requires_grad(true);
    let embedding = made.tensor(&[5, 2], 1.0);
    let targets = Tensor::from_slice(&[0i64, 1, 2]);
    let op = TokenOp::new(&hidden, &embedding, &targets, &ALL).unwrap();
    let stats = op.forward().unwrap();
    op.surrogate(&stats).unwrap().backward();
    assert!(numbers(&hidden.grad()).iter().all(|g| g.abs() == 0.0));
    stats.logp.sum(Kind::Double).backward();
    op.surrogate(&stats).unwrap().backward();
    assert!(numbers(&hidden.grad()).iter().any(|g| g.abs() > 0.0));
    assert!(!embedding.grad().defined());
    let frozen = TokenOp::new(&hidden.detach(), &embedding, &targets, &ALL).unwrap();
    let text = frozen.surrogate(&frozen.forward().unwrap()).unwrap_err().to_string();
    assert_eq!(
        text,
        "hidden and embedding: expected at least one that requires a gradient, got none"
    );
}

/// Where the target's logit is all that is read, it is made without those of the others: same value, same gradient.
#[test]
fn the_target_alone_equals_the_target_among_all() {
    let mut made = Numbers::new(5);
    let among = Needs {
        target_logit: true,
        ..Needs::default()
    };
    let alone = Needs {
        without_logp: true,
        ..among
    };
    let targets = Tensor::from_slice(&[1i64, 3, 3]);
    let mut compared = 0;
    // States so wide that they are walked over two at a time, too.
    for (kind, d, affine, close) in [
        (Kind::Double, 6, false, 1e-14),
        (Kind::Double, 6, true, 1e-14),
        (Kind::BFloat16, 6, true, 0.02),
        (Kind::Float, 3 << 20, true, 1e-5),
    ] {
        let size = 1.0 / (d as f64).sqrt();
        let [hidden, embedding] = [3, 4].map(|rows| match d {
            6 => made.tensor(&[rows, d], 1.0).to_kind(kind),
            _ => {
                Tensor::linspace(0.0, 9e4 / rows as f64, rows * d, (kind, Device::Cpu))
                    .sin()
                    .view([rows, d])
                    * size
            }
        });
        let outcome = [alone, among].map(|needs| {
            let leaf = |t: &Tensor| t.detach().set_requires_grad(true);
            let (scale, bias) = (leaf(&Tensor::from(1.5f32)), leaf(&Tensor::from(-0.25f32)));
            let (hidden, embedding) = (leaf(&hidden), leaf(&embedding));
            let op = TokenOp::new(&hidden, &embedding, &targets, &needs).unwrap();
            let op = match affine {
                true => op
                    .with_affine(&scale, &bias)
                    .and_then(|op| op.with_temperature(0.5))
                    .unwrap(),
                false => op,
            };
            let stats = op.forward().unwrap();
            assert_eq!(
                numbers(&stats.logp).iter().all(|logp| logp.is_nan()),
                needs.without_logp
            );
            let logit = stats.target_logit.as_ref().unwrap();
            assert!(logit.requires_grad() && logit.kind() == stats.logp.kind());
            (logit * Tensor::from_slice(&[1.0f32, -2.0, 3.0]))
                .sum(Kind::Double)
                .backward();
            op.backward(&stats).unwrap();
            let mut found = vec![logit.shallow_clone(), hidden.grad(), embedding.grad()];
            found.extend([&scale, &bias].iter().filter(|_| affine).map(|t| t.grad()));
            assert_eq!(
                (numbers(&stats.targets), stats.correct.size()),
                (vec![1.0, 3.0, 3.0], vec![3])
            );
            found
        });
        assert_eq!(outcome[0].len(), if affine { 5 } else { 3 });
        for (at, (a, b)) in outcome[0].iter().zip(&outcome[1]).enumerate() {
            let found = difference(a, b);
            assert!(found < close, "{kind:?} {d}: {at} differs by {found}");
            compared += 1;
        }
    }
    assert_eq!(compared, 18);
}
