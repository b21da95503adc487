//! What does not fit together is an error that says both sides.

use std::ops::Range;

use tch::{Device, Kind, Tensor};
use unsay_losses::{Error, Kl, LossValue, Needs, TokenOp, TokenStats};

#[test]
fn inputs_that_do_not_fit_are_errors_with_both_sides() {
    let zeros = |size: &[i64]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
    let ids = |ids: &[i64]| Tensor::from_slice(ids);
    let none = Needs::default();
    let cases: Vec<(&str, Result<TokenOp, Error>)> = vec![
        (
            "hidden: expected two dimensions, got [2, 3, 4]",
            TokenOp::new(&zeros(&[2, 3, 4]), &zeros(&[5, 4]), &ids(&[0]), &none),
        ),
        (
            "embedding: expected [V, 4] as `hidden` is [2, 4], got [5, 3]",
            TokenOp::new(&zeros(&[2, 4]), &zeros(&[5, 3]), &ids(&[0, 0]), &none),
        ),
        (
            "the batch of hidden states is empty",
            TokenOp::new(&zeros(&[0, 4]), &zeros(&[5, 4]), &ids(&[]), &none),
        ),
        (
            "the output embedding is empty",
            TokenOp::new(&zeros(&[2, 4]), &zeros(&[0, 4]), &ids(&[0, 0]), &none),
        ),
        (
            "embedding: expected Float, as `hidden` is, got Double",
            TokenOp::new(
                &zeros(&[2, 4]),
                &zeros(&[5, 4]).to_kind(Kind::Double),
                &ids(&[0, 0]),
                &none,
            ),
        ),
        (
            "hidden: expected f64, f32 or bf16 (in f16 the gradients of rare tokens are zero), got Int64",
            TokenOp::new(
                &zeros(&[2, 4]).to_kind(Kind::Int64),
                &zeros(&[5, 4]),
                &ids(&[0, 0]),
                &none,
            ),
        ),
        (
            "targets: expected [2] of Int64, got [1] of Int64",
            TokenOp::new(&zeros(&[2, 4]), &zeros(&[5, 4]), &ids(&[0]), &none),
        ),
        (
            "targets: expected [2] of Int64, got [2] of Float",
            TokenOp::new(&zeros(&[2, 4]), &zeros(&[5, 4]), &zeros(&[2]), &none),
        ),
        (
            "targets: expected ids in 0..5, got 5",
            TokenOp::new(&zeros(&[2, 4]), &zeros(&[5, 4]), &ids(&[0, 5]), &none),
        ),
        (
            "targets: expected ids in 0..5, got -100",
            TokenOp::new(&zeros(&[2, 4]), &zeros(&[5, 4]), &ids(&[-100, 1]), &none),
        ),
        (
            "embedding: expected at least 6 tokens, to take the 6 largest logits, got 5 tokens",
            TokenOp::new(
                &zeros(&[2, 4]),
                &zeros(&[5, 4]),
                &ids(&[0, 1]),
                &Needs { top_k: 6, ..none },
            ),
        ),
        (
            "embedding: expected at least 2 tokens, as `log(1 - p)` is asked for, got 1",
            TokenOp::new(
                &zeros(&[2, 4]),
                &zeros(&[1, 4]),
                &ids(&[0, 0]),
                &Needs { log1m_p: true, ..none },
            ),
        ),
    ];
    assert_eq!(cases.len(), 12);
    for (expected, result) in cases {
        assert_eq!(result.unwrap_err().to_string(), expected);
    }
}

#[test]
fn what_is_given_beside_the_batch_and_does_not_fit_is_an_error_with_both_sides() {
    let zeros = |size: &[i64]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
    let ids = |size: &[i64], id: i64| Tensor::full(size, id, (Kind::Int64, Device::Cpu));
    let none = Needs::default();
    let op = |v: i64, needs: &Needs| TokenOp::new(&zeros(&[2, 4]), &zeros(&[v, 4]), &ids(&[2], 0), needs);
    let five = || op(5, &none).unwrap();
    let one = Tensor::from(1.0f32);
    let cases: Vec<(&str, Result<TokenOp, Error>)> = vec![
        (
            "candidates: expected [2, C] of Int64, C at least 1, got [2] of Int64",
            five().with_candidates(&ids(&[2], 0)),
        ),
        (
            "candidates: expected [2, C] of Int64, C at least 1, got [3, 1] of Int64",
            five().with_candidates(&ids(&[3, 1], 0)),
        ),
        (
            "candidates: expected [2, C] of Int64, C at least 1, got [2, 0] of Int64",
            five().with_candidates(&ids(&[2, 0], 0)),
        ),
        (
            "candidates: expected [2, C] of Int64, C at least 1, got [2, 1] of Float",
            five().with_candidates(&zeros(&[2, 1])),
        ),
        (
            "candidates: expected ids in -1..5, got 5",
            five().with_candidates(&ids(&[2, 1], 5)),
        ),
        (
            "candidates: expected ids in -1..5, got -2",
            five().with_candidates(&ids(&[2, 1], -2)),
        ),
        (
            "the reference's hidden: expected two dimensions, got [2]",
            five().with_reference(&zeros(&[2]), &zeros(&[5, 3])),
        ),
        (
            "the reference's hidden: expected [2, D'] as the policy's has 2 rows, got [3, 3]",
            five().with_reference(&zeros(&[3, 3]), &zeros(&[5, 3])),
        ),
        (
            "the reference's embedding: expected [5, 3] as the policy has 5 tokens and the reference's hidden is [2, 3], got [6, 3]",
            five().with_reference(&zeros(&[2, 3]), &zeros(&[6, 3])),
        ),
        (
            "the reference's embedding: expected [5, 3] as the policy has 5 tokens and the reference's hidden is [2, 3], got [5, 4]",
            five().with_reference(&zeros(&[2, 3]), &zeros(&[5, 4])),
        ),
        (
            "the reference's embedding: expected Float, as `the reference's hidden` is, got Double",
            five().with_reference(&zeros(&[2, 3]), &zeros(&[5, 3]).to_kind(Kind::Double)),
        ),
        (
            "the reference's hidden: expected f64, f32 or bf16 (in f16 the gradients of rare tokens are zero), got Int64",
            five().with_reference(&ids(&[2, 3], 0), &ids(&[5, 3], 0)),
        ),
        (
            "scale: expected a floating-point number without dimensions, got [1] of Float",
            five().with_affine(&zeros(&[1]), &one),
        ),
        (
            "bias: expected a floating-point number without dimensions, got [] of Int64",
            five().with_affine(&one, &Tensor::from(1i64)),
        ),
        (
            "`temperature` is 0, expected a finite number above 0",
            five().with_temperature(0.0),
        ),
        (
            "`temperature` is -1, expected a finite number above 0",
            five().with_temperature(-1.0),
        ),
        (
            "`temperature` is inf, expected a finite number above 0",
            five().with_temperature(f64::INFINITY),
        ),
        (
            "`temperature` is NaN, expected a finite number above 0",
            five().with_temperature(f64::NAN),
        ),
        (
            "embedding: expected at least 2 tokens, as `log(1 - p)` of candidates is asked for, got 1",
            op(
                1,
                &Needs {
                    candidate_log1m_p: true,
                    ..none
                },
            ),
        ),
        (
            "embedding: expected at least 2 tokens, as the tokens other than the target are asked for, got 1",
            op(
                1,
                &Needs {
                    off_target: true,
                    ..none
                },
            ),
        ),
        (
            "embedding: expected at least 18446744073709551615 tokens, to take the 18446744073709551615 largest logits, got 5 tokens",
            op(
                5,
                &Needs {
                    top_k: usize::MAX,
                    ..none
                },
            ),
        ),
    ];
    assert_eq!(cases.len(), 21);
    for (expected, result) in cases {
        assert_eq!(result.unwrap_err().to_string(), expected);
    }
    // One token is enough for everything else, and as many as are taken.
    assert!(
        op(
            1,
            &Needs {
                top_k: 1,
                entropy: true,
                ..none
            }
        )
        .is_ok()
    );

    let constant = |_: &TokenStats, _: Range<i64>| -> Result<LossValue, Error> { unreachable!() };
    for (needs, expected) in [
        (
            Needs {
                candidates: true,
                ..none
            },
            "candidates: expected ids by `with_candidates`, as the needs ask about them, got none",
        ),
        (
            Needs {
                candidate_log1m_p: true,
                ..none
            },
            "candidates: expected ids by `with_candidates`, as the needs ask about them, got none",
        ),
        (
            Needs {
                kl: Some(Kl::Forward),
                ..none
            },
            "the reference: expected hidden states by `with_reference`, as the needs ask for a divergence from it, got none",
        ),
    ] {
        let op = op(5, &needs).unwrap();
        assert_eq!(op.forward().unwrap_err().to_string(), expected);
        assert_eq!(op.fused(constant).unwrap_err().to_string(), expected);
    }
}
