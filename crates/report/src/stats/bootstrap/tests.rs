use super::*;
use proptest::prelude::*;
use rand::Rng;
use rand_chacha::rand_core::SeedableRng;

const OPTIONS: Bootstrap = Bootstrap {
    resamples: 2000,
    level: 0.95,
};

fn average(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn stream(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

fn names(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("e{i}")).collect()
}

fn scored<'a>(names: &'a [String], values: &[Vec<f64>]) -> Vec<Scored<'a>> {
    let seeds = values.iter().zip(0..);
    seeds
        .flat_map(|(values, seed)| {
            (values.iter().zip(names)).map(move |(&value, example)| Scored { seed, example, value })
        })
        .collect()
}

/// A standard normal number by Box and Muller.
fn normal(draw: &mut ChaCha8Rng) -> f64 {
    let (u, v): (f64, f64) = (1.0 - draw.random::<f64>(), draw.random());
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

#[test]
fn equals_the_exact_bootstrap_distribution_of_a_tiny_case() {
    // Two seeds with one pair each, d = 0 and 1: the resampled mean is 0, 1/2, 1 with chances 1/4, 1/2, 1/4. So a 40 %
    // interval (quantiles 0.3 and 0.7) is [1/2, 1/2] and an 80 % one (0.1 and 0.9) is [0, 1].
    let names = names(1);
    let a = scored(&names, &[vec![0.0], vec![1.0]]);
    let b = scored(&names, &[vec![0.0], vec![0.0]]);
    for (level, low, high) in [(0.4, 0.5, 0.5), (0.8, 0.0, 1.0)] {
        let options = Bootstrap { resamples: 2000, level };
        let got = paired_difference(&a, &b, options, &mut stream(1)).unwrap();
        assert!((got.mean - 0.5).abs() < 1e-12);
        assert_eq!(got.interval, Some(Interval { low, high, level }));
    }
}

#[test]
fn the_spread_is_that_of_the_formula() {
    // (1 − 1/N) B/S + (1 − 1/S) C/N + D/(S N), as documented.
    let mut draw = stream(5);
    let names = names(40);
    let values: Vec<Vec<f64>> = (0..6)
        .map(|s| {
            (0..40)
                .map(|i| f64::from(s) * 0.1 + f64::from(i) * 0.03 + normal(&mut draw))
                .collect()
        })
        .collect();
    let zeros = vec![vec![0.0; 40]; 6];
    let options = Bootstrap {
        resamples: 20_000,
        level: 0.6827,
    };
    let got = paired_difference(&scored(&names, &values), &scored(&names, &zeros), options, &mut draw).unwrap();
    let spread = |xs: &[f64]| xs.iter().map(|x| (x - average(xs)).powi(2)).sum::<f64>() / xs.len() as f64;
    let seeds: Vec<f64> = values.iter().map(|v| average(v)).collect();
    let examples: Vec<f64> = (0..40)
        .map(|i| average(&values.iter().map(|v| v[i]).collect::<Vec<_>>()))
        .collect();
    let (s, n) = (6.0, 40.0);
    let variance = (1.0 - 1.0 / n) * spread(&seeds) / s
        + (1.0 - 1.0 / s) * spread(&examples) / n
        + spread(&values.concat()) / (s * n);
    let expected = variance.sqrt();
    let interval = got.interval.unwrap();
    let ratio = (interval.high - interval.low) / 2.0 / expected;
    assert!(
        (ratio - 1.0).abs() < 0.03,
        "half width over one standard error: {ratio}"
    );
}

/// Spreads of the effects of a simulated design and its size.
#[derive(Clone, Copy)]
struct Design {
    n_seeds: usize,
    n_examples: usize,
    seeds: f64,
    examples: f64,
}

/// How often the interval, and that of examples drawn anew for each seed, covers the truth of 0.3.
fn coverage(design: Design, repetitions: u64) -> (f64, f64) {
    let names = names(design.n_examples);
    let options = Bootstrap {
        resamples: 400,
        level: 0.95,
    };
    let zeros = vec![vec![0.0; design.n_examples]; design.n_seeds];
    let (mut crossed, mut nested) = (0, 0);
    for repetition in 0..repetitions {
        let mut draw = stream(1000 + repetition);
        let shared: Vec<f64> = names.iter().map(|_| design.examples * normal(&mut draw)).collect();
        let values: Vec<Vec<f64>> = (0..design.n_seeds)
            .map(|_| {
                let seed_effect = design.seeds * normal(&mut draw);
                (shared.iter())
                    .map(|effect| 0.3 + seed_effect + effect + normal(&mut draw))
                    .collect()
            })
            .collect();
        let got = paired_difference(&scored(&names, &values), &scored(&names, &zeros), options, &mut draw).unwrap();
        let interval = got.interval.unwrap();
        crossed += u64::from(interval.low <= 0.3 && 0.3 <= interval.high);
        let (low, high) = nested_interval(&values, options, &mut draw);
        nested += u64::from(low <= 0.3 && 0.3 <= high);
    }
    let share = |hits: u64| hits as f64 / repetitions as f64;
    (share(crossed), share(nested))
}

/// What the interval would be if each seed had examples of its own.
fn nested_interval(values: &[Vec<f64>], options: Bootstrap, draw: &mut ChaCha8Rng) -> (f64, f64) {
    let mut means: Vec<f64> = (0..options.resamples)
        .map(|_| {
            let seeds = values.iter().map(|_| {
                let seed = &values[draw.random_range(0..values.len())];
                seed.iter().map(|_| seed[draw.random_range(0..seed.len())]).sum::<f64>() / seed.len() as f64
            });
            seeds.sum::<f64>() / values.len() as f64
        })
        .collect();
    means.sort_by(f64::total_cmp);
    (quantile(&means, 0.025), quantile(&means, 0.975))
}

#[test]
fn covers_as_documented() {
    let of = |n_seeds| {
        let design = Design {
            n_seeds,
            n_examples: 8,
            seeds: 1.0,
            examples: 0.0,
        };
        coverage(design, 400).0
    };
    let twenty = of(20);
    assert!((0.90..0.98).contains(&twenty), "20 seeds: {twenty}");
    let three = of(3);
    assert!((0.72..0.92).contains(&three), "3 seeds: {three}");
}

#[test]
fn what_examples_share_over_seeds_is_covered() {
    let design = Design {
        n_seeds: 5,
        n_examples: 40,
        seeds: 0.1,
        examples: 2.0,
    };
    let (crossed, nested) = coverage(design, 200);
    assert!((0.88..0.99).contains(&crossed), "one draw of examples: {crossed}");
    assert!(nested < 0.75, "a draw of examples per seed: {nested}");
}

#[test]
fn seeds_with_other_examples_share_the_draw() {
    // d = 0 for example x of seed 0 and 1 for example y of seed 1. Of the 16 equally likely draws of two seeds and two
    // examples, 2 hit no cell and are drawn anew; of the other 14, 5 give 0, 4 give 1/2 and 5 give 1.
    let score = |seed, example, value| Scored { seed, example, value };
    let a = [score(0, "x", 0.0), score(1, "y", 1.0)];
    let b = [score(1, "y", 0.0), score(0, "x", 0.0)];
    for (level, low, high) in [(0.2, 0.5, 0.5), (0.4, 0.0, 1.0)] {
        let options = Bootstrap { resamples: 2000, level };
        let got = paired_difference(&a, &b, options, &mut stream(1)).unwrap();
        assert_eq!((got.mean, got.n_seeds, got.n_pairs, got.n_unpaired), (0.5, 2, 2, 0));
        assert_eq!(got.interval, Some(Interval { low, high, level }));
    }
}

#[test]
fn every_pair_counts_the_same_in_seeds_of_different_size() {
    let names = names(3);
    let a = scored(&names, &[vec![1.0, 1.0, 1.0], vec![5.0]]);
    let b = scored(&names, &[vec![0.0, 0.0, 0.0], vec![0.0]]);
    let got = paired_difference(&a, &b, OPTIONS, &mut stream(1)).unwrap();
    assert_eq!((got.mean, got.n_pairs), (2.0, 4));
}

#[test]
fn the_order_of_the_scores_does_not_matter() {
    let mut draw = stream(3);
    let names = names(30);
    let arm = |draw: &mut ChaCha8Rng| -> Vec<Vec<f64>> {
        // Seeds have 30, 26 and 22 of the examples.
        (0..3)
            .map(|s| (0..30 - 4 * s).map(|_| normal(draw)).collect())
            .collect()
    };
    let (first, second) = (arm(&mut draw), arm(&mut draw));
    let (mut a, mut b) = (scored(&names, &first), scored(&names, &second));
    let plain = paired_difference(&a, &b, OPTIONS, &mut stream(2)).unwrap();
    for scores in [&mut a, &mut b] {
        for i in (1..scores.len()).rev() {
            scores.swap(i, draw.random_range(0..=i));
        }
    }
    assert_eq!(paired_difference(&a, &b, OPTIONS, &mut stream(2)).unwrap(), plain);
}

#[test]
fn pairing_removes_what_the_examples_share() {
    let mut draw = stream(9);
    let names = names(200);
    let hard: Vec<f64> = (0..200).map(|_| 10.0 * normal(&mut draw)).collect();
    let mut arm = |gain: f64| -> Vec<Vec<f64>> {
        (0..3)
            .map(|_| hard.iter().map(|h| h + gain + 0.1 * normal(&mut draw)).collect())
            .collect()
    };
    let (a, b) = (arm(0.05), arm(0.0));
    let got = paired_difference(&scored(&names, &a), &scored(&names, &b), OPTIONS, &mut stream(2)).unwrap();
    let interval = got.interval.unwrap();
    assert!(
        interval.excludes_zero() && interval.high - interval.low < 0.1,
        "{got:?}"
    );
}

#[test]
fn partners_are_matched_by_name_and_the_rest_is_counted() {
    let score = |seed, example, value| Scored { seed, example, value };
    let a = [
        score(0, "x", 3.0),
        score(0, "y", 1.0),
        score(1, "x", 2.0),
        score(2, "x", 9.0),
    ];
    let b = [score(1, "x", 1.0), score(0, "x", 1.0), score(0, "z", 7.0)];
    let got = paired_difference(&a, &b, OPTIONS, &mut stream(1)).unwrap();
    assert_eq!((got.mean, got.n_seeds, got.n_pairs, got.n_unpaired), (1.5, 2, 2, 3));
}

#[test]
fn one_seed_has_no_interval() {
    let names = names(3);
    let a = scored(&names, &[vec![1.0, 2.0, 3.0]]);
    let got = paired_difference(&a, &a, OPTIONS, &mut stream(1)).unwrap();
    assert_eq!((got.mean, got.interval, got.n_seeds), (0.0, None, 1));
}

#[test]
fn bad_input_is_refused() {
    let score = |seed, example, value| Scored { seed, example, value };
    let fine = [score(0, "x", 1.0)];
    let run =
        |a: &[Scored<'_>], b: &[Scored<'_>], options| paired_difference(a, b, options, &mut stream(1)).unwrap_err();
    assert!(matches!(
        run(&fine, &[score(1, "x", 1.0)], OPTIONS),
        Error::NoValues { .. }
    ));
    assert!(matches!(run(&[], &[], OPTIONS), Error::NoValues { .. }));
    assert!(matches!(run(&[fine[0], fine[0]], &fine, OPTIONS), Error::Twice { .. }));
    assert!(matches!(
        run(&[score(0, "x", f64::NAN)], &fine, OPTIONS),
        Error::NotFinite { .. }
    ));
    assert!(matches!(
        run(
            &fine,
            &fine,
            Bootstrap {
                resamples: 5,
                ..OPTIONS
            }
        ),
        Error::Range { .. }
    ));
    assert!(matches!(
        run(&fine, &fine, Bootstrap { level: 1.5, ..OPTIONS }),
        Error::Range { .. }
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn order_sign_shift_and_scale(
        values in prop::collection::vec(prop::collection::vec(-5.0..5.0f64, 1..6), 2..5),
        shift in -3.0..3.0f64,
        scale in 0.1..4.0f64,
    ) {
        let names = names(6);
        let zeros: Vec<Vec<f64>> = values.iter().map(|v| vec![0.0; v.len()]).collect();
        let (a, b) = (scored(&names, &values), scored(&names, &zeros));
        let options = Bootstrap { resamples: 200, level: 0.9 };
        let run = |a: &[Scored<'_>], b: &[Scored<'_>]| paired_difference(a, b, options, &mut stream(4)).unwrap();
        let plain = run(&a, &b);
        let mut reversed = a.clone();
        reversed.reverse();
        prop_assert_eq!(run(&reversed, &b), plain);
        let ends = |d: &Difference| { let i = d.interval.unwrap(); (i.low, i.high) };
        let near = |x: f64, y: f64| (x - y).abs() < 1e-9;
        let swapped = run(&b, &a);
        prop_assert!(near(ends(&swapped).0, -ends(&plain).1) && near(ends(&swapped).1, -ends(&plain).0));
        let changed: Vec<Scored<'_>> =
            a.iter().map(|s| Scored { value: s.value * scale + shift, ..*s }).collect();
        let changed = run(&changed, &b);
        prop_assert!(near(ends(&changed).0, ends(&plain).0 * scale + shift));
        prop_assert!(near(changed.mean, plain.mean * scale + shift));
    }
}
