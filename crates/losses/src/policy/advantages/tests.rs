use super::*;

const NAN: f64 = f64::NAN;

const PLAIN: Normalisation = Normalisation {
    scale: Scale::Group,
    eps: 0.5,
    deviation: Deviation::Sample,
    combination: Combination::SumThenNormalise,
};

fn near(ours: &[f64], by_hand: &[f64]) -> bool {
    ours.len() == by_hand.len() && ours.iter().zip(by_hand).all(|(a, b)| (a - b).abs() < 1e-12)
}

#[test]
fn what_cannot_be_scored_is_left_out() {
    let ours = leave_one_out(&[1.0, NAN, 4.0, 2.0, NAN, NAN, NAN, NAN, 3.0], 3).unwrap();
    assert!(near(&ours, &[-3.0, 0.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]), "{ours:?}");
    let ours = group_normalised(&[&[1.0, NAN, 3.0, NAN, NAN, NAN]], &[1.0], 3, &PLAIN).unwrap();
    let unit = 2f64.sqrt() + 0.5;
    assert!(near(&ours, &[-1.0 / unit, 0.0, 1.0 / unit, 0.0, 0.0, 0.0]), "{ours:?}");
}

#[test]
fn the_scale_is_the_groups_the_batchs_or_none() {
    // Means 2 and 12, deviations √2 and 2√2.
    let rewards = [1.0, 3.0, 10.0, 14.0];
    let of = |scale, deviation| {
        let how = Normalisation {
            scale,
            deviation,
            ..PLAIN
        };
        group_normalised(&[&rewards], &[1.0], 2, &how).unwrap()
    };
    let (a, b) = (2f64.sqrt() + 0.5, 8f64.sqrt() + 0.5);
    assert!(near(
        &of(Scale::Group, Deviation::Sample),
        &[-1.0 / a, 1.0 / a, -2.0 / b, 2.0 / b]
    ));
    assert!(near(
        &of(Scale::Group, Deviation::Population),
        &[-1.0 / 1.5, 1.0 / 1.5, -0.8, 0.8]
    ));
    // The mean of all is 7: squares 36, 16, 9, 49.
    let (c, d) = ((110f64 / 3.0).sqrt() + 0.5, 27.5f64.sqrt() + 0.5);
    assert!(near(
        &of(Scale::Batch, Deviation::Sample),
        &[-1.0 / c, 1.0 / c, -2.0 / c, 2.0 / c]
    ));
    assert!(near(
        &of(Scale::Batch, Deviation::Population),
        &[-1.0 / d, 1.0 / d, -2.0 / d, 2.0 / d]
    ));
    assert!(near(&of(Scale::None, Deviation::Sample), &[-1.0, 1.0, -2.0, 2.0]));
}

#[test]
fn several_rewards_add_what_they_say() {
    // Sums 1 + 2 * 2 = 5, 3 alone, 2 * 1 alone, none: the mean of three is 10/3.
    let lists: [&[f64]; 2] = [&[1.0, 3.0, NAN, NAN], &[2.0, NAN, 1.0, NAN]];
    let how = Normalisation {
        scale: Scale::None,
        ..PLAIN
    };
    let ours = group_normalised(&lists, &[1.0, 2.0], 4, &how).unwrap();
    assert!(near(&ours, &[5.0 / 3.0, -1.0 / 3.0, -4.0 / 3.0, 0.0]), "{ours:?}");
    // Each centred: -1, 1 and 0.5, -0.5 (times 2): 0, 1, -1, and over the batch a mean of 0 and a deviation of 1.
    let how = Normalisation {
        combination: Combination::NormaliseThenSum,
        ..how
    };
    let ours = group_normalised(&lists, &[1.0, 2.0], 4, &how).unwrap();
    assert!(near(&ours, &[0.0, 1.0 / 1.5, -1.0 / 1.5, 0.0]), "{ours:?}");
}

#[test]
fn equal_rewards_and_too_few_of_them_give_zeros() {
    for scale in [Scale::Group, Scale::Batch, Scale::None] {
        let how = Normalisation { scale, ..PLAIN };
        assert!(near(
            &group_normalised(&[&[0.5; 4]], &[1.0], 2, &how).unwrap(),
            &[0.0; 4]
        ));
        let one = group_normalised(&[&[NAN, 2.0]], &[1.0], 2, &how).unwrap();
        assert!(near(&one, &[0.0, 0.0]), "{one:?}");
    }
    assert!(near(&leave_one_out(&[0.5; 4], 2).unwrap(), &[0.0; 4]));
    assert!(near(&batch_normalised(&[7.0], Deviation::Sample, 0.1).unwrap(), &[0.0]));
}

#[test]
fn over_the_batch_the_mean_goes_and_the_deviation_is_the_unit() {
    let ours = |deviation| batch_normalised(&[1.0, 2.0, 6.0], deviation, 0.25).unwrap();
    let (sample, population) = (7f64.sqrt() + 0.25, (14f64 / 3.0).sqrt() + 0.25);
    assert!(near(
        &ours(Deviation::Sample),
        &[-2.0 / sample, -1.0 / sample, 3.0 / sample]
    ));
    assert!(near(
        &ours(Deviation::Population),
        &[-2.0 / population, -1.0 / population, 3.0 / population]
    ));
}

#[test]
fn what_does_not_fit_is_an_error() {
    let one = |rewards: &[f64], group| leave_one_out(rewards, group).unwrap_err().to_string();
    assert_eq!(one(&[], 2), "the list of rewards is empty");
    assert_eq!(
        one(&[1.0], 1),
        "group: expected at least 2 completions per prompt, got 1"
    );
    assert_eq!(one(&[1.0; 3], 2), "rewards: expected groups of 2, got 3");
    let infinite = [1.0, f64::NEG_INFINITY];
    assert_eq!(
        one(&infinite, 2),
        "rewards: expected finite numbers, or NaN for none, got -inf"
    );
    let many = |rewards: &[&[f64]], weights: &[f64], eps| {
        let how = Normalisation { eps, ..PLAIN };
        group_normalised(rewards, weights, 2, &how).unwrap_err().to_string()
    };
    let (two, four): (&[f64], &[f64]) = (&[1.0; 2], &[1.0; 4]);
    assert_eq!(many(&[], &[], 0.1), "the list of rewards is empty");
    assert_eq!(many(&[two, four], &[1.0; 2], 0.1), "rewards: expected 2, got 4");
    let finite = "weights: expected 1 finite numbers, one per reward, got";
    assert_eq!(many(&[two], &[1.0; 2], 0.1), format!("{finite} [1.0, 1.0]"));
    assert_eq!(many(&[two], &[NAN], 0.1), format!("{finite} [NaN]"));
    assert_eq!(many(&[two, &infinite], &[1.0; 2], 0.1), one(&infinite, 2));
    let eps = "`normalisation.eps` is 0, expected a finite number above 0";
    assert_eq!(many(&[two], &[1.0], 0.0), eps);
    let batch = |x: &[f64], eps| batch_normalised(x, Deviation::Sample, eps).unwrap_err().to_string();
    assert_eq!(batch(&[1.0], 0.0), eps);
    assert_eq!(batch(&[], 0.1), "the list of advantages is empty");
    assert_eq!(batch(&[1.0, NAN], 0.1), "advantages: expected finite numbers, got NaN");
}

#[test]
fn numbers_too_large_to_add_or_square_are_errors_and_no_zeros() {
    let text = |of: Result<Vec<f64>>| of.unwrap_err().to_string();
    let expected = |what: &str| format!("{what}: expected numbers whose sums and squares are finite, got larger ones");
    let with = |lists: &[&[f64]], weights: &[f64], scale, combination| {
        let how = Normalisation {
            scale,
            combination,
            ..PLAIN
        };
        group_normalised(lists, weights, 2, &how)
    };
    let both = [Combination::SumThenNormalise, Combination::NormaliseThenSum];
    for (scale, combination) in [Scale::Group, Scale::Batch, Scale::None]
        .into_iter()
        .flat_map(|scale| both.map(|combination| (scale, combination)))
    {
        // Sums, squares alone, and weighted.
        for (rewards, weight) in [([1e308, 1e308], 1.0), ([1e200, -1e200], 1.0), ([1.0, 1e10], 1e308)] {
            let ours = with(&[&rewards], &[weight], scale, combination);
            assert_eq!(text(ours), expected("rewards"), "{scale:?} {combination:?} {rewards:?}");
        }
        // Squares over the batch, where they are taken.
        let ours = with(&[&[1e200, 1e200, 0.0, 0.0]], &[1.0], scale, combination);
        match scale {
            Scale::Batch => assert_eq!(text(ours), expected("rewards")),
            _ => assert!(near(&ours.unwrap(), &[0.0; 4])),
        }
        // What no function says anything of is still left out.
        let ours = with(&[&[1e150, NAN]], &[1.0], scale, combination).unwrap();
        assert!(near(&ours, &[0.0, 0.0]), "{ours:?}");
    }
    // Infinity less infinity is no missing reward.
    let lists: [&[f64]; 2] = [&[1e10, 1.0], &[1e10, 1.0]];
    let ours = with(&lists, &[1e308, -1e308], Scale::None, Combination::SumThenNormalise);
    assert_eq!(text(ours), expected("rewards"));
    for rewards in [[1e308, 1e308, 1e308], [1.7e308, -1.7e308, -1.7e308]] {
        assert_eq!(text(leave_one_out(&rewards, 3)), expected("rewards"));
    }
    let batch = batch_normalised(&[1e200, -1e200], Deviation::Sample, 0.1);
    assert_eq!(text(batch), expected("advantages"));
    let large = batch_normalised(&[1e150, -1e150], Deviation::Population, 0.1).unwrap();
    assert!(near(&large, &[1.0, -1.0]), "{large:?}");
}

#[test]
fn the_manifest_form_names_the_choices() {
    let how: Normalisation = serde_json::from_str(r#"{ "scale": "group", "eps": 0.5 }"#).unwrap();
    assert_eq!(how, PLAIN);
    let text = r#"{ "scale": "none", "eps": 1, "deviation": "population", "combination": "normalise_then_sum" }"#;
    let how: Normalisation = serde_json::from_str(text).unwrap();
    assert_eq!((how.scale, how.deviation), (Scale::None, Deviation::Population));
    assert_eq!(how.combination, Combination::NormaliseThenSum);
}
