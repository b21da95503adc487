//! The update against the rule in plain numbers, and what is lost and kept in narrow kinds.

use super::*;

const LR: [f64; 5] = [0.1, 0.05, 0.2, 0.0, 0.01];

fn tensor(values: &[f64], size: &[i64], kind: Kind) -> Tensor {
    Tensor::from_slice(values).to_kind(kind).view(size)
}

fn params<const N: usize>(entries: [(&str, &[f64], &[i64]); N], kind: Kind) -> Params {
    let entries = entries.map(|(name, values, size)| (name.to_owned(), tensor(values, size, kind)));
    Params::new(entries.into()).unwrap()
}

/// Leaves `g` as the gradient of a parameter.
fn set_gradient(params: &Params, name: &str, g: &[f64]) {
    let leaf = params.trainable().find(|param| param.name() == name).unwrap().value();
    let g = tensor(g, &leaf.size(), leaf.kind());
    (leaf * g).sum(None::<Kind>).backward();
}

fn flat(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.detach().to_kind(Kind::Double).view(-1)).unwrap()
}

fn values(params: &Params, name: &str) -> Vec<f64> {
    flat(params.get(name).unwrap())
}

fn gradient_of(params: &Params, name: &str) -> Vec<f64> {
    let param = params.trainable().find(|param| param.name() == name).unwrap();
    flat(&param.gradient().unwrap().unwrap())
}

fn gradient(i: usize, step: usize) -> f64 {
    ((i * 7 + step * 3) % 11) as f64 / 4.0 - 1.0
}

/// The rule in plain scalars, bias-corrected moments first, as in the paper's listing.
fn by_hand(start: &[f64], decay: f64, (beta1, beta2): (f64, f64), eps: f64) -> Vec<f64> {
    let run = |(i, &start): (usize, &f64)| {
        let (mut p, mut m, mut v) = (start, 0.0, 0.0);
        for (step, lr) in LR.iter().enumerate() {
            let g = gradient(i, step);
            p -= lr * decay * p;
            m = beta1 * m + (1.0 - beta1) * g;
            v = beta2 * v + (1.0 - beta2) * g * g;
            let m_hat = m / (1.0 - beta1.powi(step as i32 + 1));
            let v_hat: f64 = v / (1.0 - beta2.powi(step as i32 + 1));
            p -= lr * m_hat / (v_hat.sqrt() + eps);
        }
        p
    };
    start.iter().enumerate().map(run).collect()
}

fn run(kind: Kind) -> Params {
    let params = params(
        [("w", &[1.0, -2.0, 0.5, 3.0], &[2, 2]), ("b", &[1.0, -1.0], &[2])],
        kind,
    );
    let mut optimizer = AdamW::new(&params, (0.9, 0.99), 1e-8, 0.1).unwrap();
    for (step, &lr) in LR.iter().enumerate() {
        set_gradient(&params, "w", &[0, 1, 2, 3].map(|i| gradient(i, step)));
        set_gradient(&params, "b", &[0, 1].map(|i| gradient(i, step)));
        optimizer.step(&params, lr, 1.0).unwrap();
    }
    params
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn the_trajectory_is_that_of_the_scalar_rule() {
    tch::set_num_threads(1);
    let matrix = by_hand(&[1.0, -2.0, 0.5, 3.0], 0.1, (0.9, 0.99), 1e-8);
    let vector = by_hand(&[1.0, -1.0], 0.0, (0.9, 0.99), 1e-8);
    // The gradients are multiples of 1/4 and exact in bf16, so masters move as f32 weights do.
    for (kind, tolerance) in [(Kind::Double, 1e-12), (Kind::Float, 1e-6), (Kind::BFloat16, 1e-6)] {
        let params = run(kind);
        for (name, expected) in [("w", &matrix), ("b", &vector)] {
            let found = values(&params, name);
            assert!(
                largest_difference(&found, expected) < tolerance,
                "{found:?} != {expected:?}"
            );
        }
    }
}

#[test]
fn a_narrow_leaf_is_its_rounded_master_and_small_updates_are_not_lost() {
    let params = params([("w", &[256.0], &[1, 1])], Kind::BFloat16);
    let mut optimizer = AdamW::new(&params, (0.0, 0.0), 1e-8, 0.0).unwrap();
    let leaf = params.trainable().next().unwrap().value().shallow_clone();
    // Steps of 1/4, where bf16 at 256 has steps of 1 below and 2 above.
    for (step, rounded) in [(1, 256.0), (2, 255.5), (3, 255.0), (4, 255.0), (8, 254.0)] {
        while optimizer.step_count() < step {
            set_gradient(&params, "w", &[1.0]);
            optimizer.step(&params, 0.25, 1.0).unwrap();
        }
        let master = values(&params, "w")[0];
        assert!((master - (256.0 - 0.25 * step as f64)).abs() < 1e-4, "{master}");
        let leaf = flat(&leaf)[0];
        assert!(
            (leaf - rounded).abs() <= 0.5 && (leaf - master).abs() <= 0.5,
            "{leaf} for {master}"
        );
    }
    assert_eq!(leaf.kind(), Kind::BFloat16);
}

#[test]
fn gradients_of_micro_batches_are_summed_in_f32() {
    let params = params([("w", &[0.0, 0.0], &[2])], Kind::BFloat16);
    // In bf16, 256 + 1/2 is 256 and stays so.
    set_gradient(&params, "w", &[256.0, 1.0]);
    params.sum_gradients().unwrap();
    for _ in 0..4 {
        set_gradient(&params, "w", &[0.5, 1.0]);
        params.sum_gradients().unwrap();
    }
    // One that nobody added is counted, too.
    set_gradient(&params, "w", &[0.5, 1.0]);
    assert!(largest_difference(&gradient_of(&params, "w"), &[258.5, 6.0]) < 1e-6);
    let norm = grad_norm(&params).unwrap().double_value(&[]);
    assert!((norm - 258.5_f64.hypot(6.0)).abs() < 1e-4, "{norm}");
    AdamW::new(&params, (0.9, 0.99), 1e-8, 0.0)
        .unwrap()
        .step(&params, 0.1, 1.0)
        .unwrap();
    assert!(largest_difference(&gradient_of(&params, "w"), &[0.0, 0.0]) < 1e-12);
    params.zero_grad().unwrap();
}

#[test]
fn the_norm_of_narrow_gradients_is_not_rounded() {
    let ones = vec![1.0; 1000];
    let params = params([("w", &ones, &[1000])], Kind::BFloat16);
    set_gradient(&params, "w", &ones);
    let norm = grad_norm(&params).unwrap().double_value(&[]);
    assert!((norm - 1000_f64.sqrt()).abs() < 1e-4, "{norm}");
}

#[test]
fn a_gradient_longer_than_a_piece_is_used_whole() {
    let n = PIECE as usize + 3;
    let start = vec![1.0; n];
    let g: Vec<f64> = (0..n).map(|i| gradient(i, 0)).collect();
    let after = |kind| {
        let params = params([("w", &start, &[n as i64])], kind);
        set_gradient(&params, "w", &g);
        AdamW::new(&params, (0.9, 0.99), 1e-2, 0.0)
            .unwrap()
            .step(&params, 0.1, 0.5)
            .unwrap();
        values(&params, "w")
    };
    assert!(largest_difference(&after(Kind::BFloat16), &after(Kind::Float)) < 1e-7);
}

#[test]
fn a_restored_state_continues_bit_for_bit() {
    tch::set_num_threads(1);
    let of = |values: &[f64]| params([("w", values, &[2, 2])], Kind::Float);
    let param = of(&[1.0, -2.0, 0.5, 3.0]);
    let mut first = AdamW::new(&param, (0.9, 0.99), 1e-8, 0.1).unwrap();
    set_gradient(&param, "w", &[1.0, 2.0, 3.0, 4.0]);
    first.step(&param, 0.1, 1.0).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let paths = ["a", "b", "c"].map(|name| folder.path().join(name));
    first.save(&paths[0]).unwrap();
    let copy = of(&values(&param, "w"));
    let mut second = AdamW::new(&copy, (0.9, 0.99), 1e-8, 0.1).unwrap();
    second.load(&paths[0]).unwrap();
    assert_eq!(second.step_count(), 1);
    for (optimizer, param) in [(&mut first, &param), (&mut second, &copy)] {
        set_gradient(param, "w", &[0.3, -0.1, 0.0, 2.0]);
        optimizer.step(param, 0.1, 1.0).unwrap();
    }
    let bits = |params| values(params, "w").iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&param), bits(&copy));
    first.save(&paths[1]).unwrap();
    second.save(&paths[2]).unwrap();
    assert_eq!(std::fs::read(&paths[1]).unwrap(), std::fs::read(&paths[2]).unwrap());
}

#[test]
fn a_state_of_other_parameters_is_refused() {
    let state = |name, size: &[i64]| {
        let params = params([(name, &[1.0; 4], size)], Kind::Float);
        AdamW::new(&params, (0.9, 0.99), 1e-8, 0.0).unwrap()
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("optimizer.safetensors");
    state("w", &[2, 2]).save(&path).unwrap();
    let refused = |mut own: AdamW| own.load(&path).unwrap_err().to_string();
    assert!(refused(state("v", &[2, 2])).contains("`v.exp_avg`: missing"));
    assert!(refused(state("w", &[4])).contains("expected [4] Float, got [2, 2] Float"));
    let none = AdamW::new(&Params::new(Vec::new()).unwrap(), (0.9, 0.99), 1e-8, 0.0).unwrap();
    assert!(refused(none).contains("`w.exp_avg`: no parameter"));
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    assert!(refused(state("w", &[2, 2])).contains("optimizer.safetensors"));
    let other = |name| params([(name, &[1.0; 4], &[4])], Kind::Float);
    let error = state("w", &[4]).step(&other("v"), 0.1, 1.0).unwrap_err().to_string();
    assert!(error.contains("expected parameter `w`, got `v`"), "{error}");
    let none = Params::new(Vec::new()).unwrap();
    let error = state("w", &[4]).step(&none, 0.1, 1.0).unwrap_err().to_string();
    assert!(error.contains("expected 1 trained parameters, got 0"), "{error}");
}

#[test]
fn clipping_scales_to_the_norm_and_no_further() {
    let params = params([("a", &[0.0], &[1]), ("b", &[0.0, 0.0], &[2])], Kind::Double);
    assert!(grad_norm(&params).is_err());
    set_gradient(&params, "a", &[3.0]);
    set_gradient(&params, "b", &[0.0, 4.0]);
    let norm = grad_norm(&params).unwrap().double_value(&[]);
    assert!((norm - 5.0).abs() < 1e-12);
    assert_eq!(clip_scale(norm, 10.0).to_bits(), 1.0_f64.to_bits());
    assert!((clip_scale(norm, 1.0) - 0.2).abs() < 1e-6);
    assert!(clip_scale(0.0, 1.0) <= 1.0);
    // The first update is lr·m/(sqrt(v)/r + eps) with m and sqrt(v) in proportion to the scaled gradient.
    let mut optimizer = AdamW::new(&params, (0.0, 0.0), 1.0, 0.0).unwrap();
    optimizer.step(&params, 1.0, 0.2).unwrap();
    assert!(largest_difference(&values(&params, "a"), &[-0.6 / 1.6]) < 1e-12);
    assert!(largest_difference(&values(&params, "b"), &[0.0, -0.8 / 1.8]) < 1e-12);
}

#[test]
fn gradients_that_are_not_finite_are_named() {
    let params = params([("a", &[0.0], &[1]), ("b", &[0.0, 0.0], &[2])], Kind::Double);
    set_gradient(&params, "a", &[3.0]);
    assert!(non_finite_gradients(&params).unwrap().is_empty());
    set_gradient(&params, "b", &[f64::NAN, 0.0]);
    assert_eq!(non_finite_gradients(&params).unwrap(), ["b"]);
    assert!(grad_norm(&params).unwrap().double_value(&[]).is_nan());
}

#[test]
fn a_missing_gradient_counts_as_zero() {
    let params = params([("w", &[1.0, 2.0], &[1, 2])], Kind::Double);
    let mut optimizer = AdamW::new(&params, (0.9, 0.99), 1e-8, 0.5).unwrap();
    optimizer.step(&params, 0.1, 1.0).unwrap();
    assert!(largest_difference(&values(&params, "w"), &[0.95, 1.9]) < 1e-12);
}
