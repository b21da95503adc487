//! What the kind of states and embedding does to a result.

use tch::Kind;

use crate::every;
use crate::subject::How;

/// The largest error of a gradient's entry, relative to the largest entry, that products rounded to 8 bits leave: 2.4 % where
/// a gradient is what two parts of about the same size leave of each other.
const BF16: f64 = 0.03;
const F32: f64 = 1e-5;

/// Both are given the same rounded numbers; products with the embedding are rounded again, sums are not.
#[test]
fn bf16_states_and_embedding_give_the_f32_result_to_bf16_accuracy() {
    every(|subject| {
        let mut batch = subject.batch(2, 6);
        let rounded =
            [&batch.states, &batch.embedding, &batch.second].map(|t| t.to_kind(Kind::BFloat16).to_kind(Kind::Double));
        [batch.states, batch.embedding, batch.second] = rounded;
        let run = |kind: Kind| subject.whole(&batch, How { kind, ..How::default() }).unwrap();
        let (half, single, double) = (run(Kind::BFloat16), run(Kind::Float), run(Kind::Double));
        let away = |a: f64, b: f64| (a - b).abs() / (1.0 + b.abs());
        assert!(away(single.total(), double.total()) < F32);
        assert!(single.difference(&double) < F32, "{}", single.difference(&double));
        assert!(away(half.total(), single.total()) < 0.02, "{}", half.total());
        assert!(half.difference(&single) < BF16, "{}", half.difference(&single));
    });
}
