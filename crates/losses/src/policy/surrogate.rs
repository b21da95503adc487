//! What every policy loss reads and gives, and the clipped surrogate that most of them are.

use tch::{Kind, Tensor};

use crate::{CompletionRows, Error, Result};

/// Log-ratios above this are held: beyond `e^40` a value says nothing more, and its square must still fit `f32`, where
/// norms of gradients are taken.
const LARGEST_LOG_RATIO: f64 = 40.0;

/// `N` sampled tokens: what the policy gives them now, what it gave when it sampled, and how good they turned out.
#[derive(Debug)]
pub struct Tokens<'a> {
    /// `[N]` log-probability under the policy, with its graph.
    pub logp: Tensor,
    /// `[N]` log-probability under the policy that sampled, in the kind of `logp`; no graph.
    pub old: Tensor,
    /// `[N]` advantage, in the kind of `logp`; no graph.
    pub advantage: Tensor,
    /// Which rows belong to which completion.
    pub rows: &'a CompletionRows,
}

/// The values of `N` tokens.
#[derive(Debug)]
pub struct Surrogate {
    /// `[N]` the value of every token, with its graph.
    pub values: Tensor,
    /// `[N]` the ratio to the policy that sampled, as the loss takes it; no graph.
    pub ratio: Tensor,
    /// `[N]` `bool`, where clipping decided the value; none for losses that do not clip.
    pub clipped: Option<Tensor>,
    /// `[N]` `bool`, where the bound on the ratio of bad tokens decided it; none where there is no such bound.
    pub dual_clipped: Option<Tensor>,
}

impl<'a> Tokens<'a> {
    /// Binds one micro-batch; `old` and `advantage` are taken as constants.
    ///
    /// **Shapes**: `logp`, `old`, `advantage` `[N]`, in the order of `rows`.
    ///
    /// **Errors**: [`Error::Input`] for another shape, device or kind.
    pub fn new(logp: &Tensor, old: &Tensor, advantage: &Tensor, rows: &'a CompletionRows) -> Result<Self> {
        let kind = column("logp", logp, rows)?;
        let constant = |what, values: &Tensor| -> Result<Tensor> {
            column(what, values, rows)?;
            Ok(values.f_detach()?.f_to_kind(kind)?)
        };
        Ok(Tokens {
            logp: logp.shallow_clone(),
            old: constant("old", old)?,
            advantage: constant("advantage", advantage)?,
            rows,
        })
    }

    /// `[N]` `log π(y_t) − log π_old(y_t)`, with its graph.
    ///
    /// **Errors**: only libtorch's.
    pub fn log_ratio(&self) -> Result<Tensor> {
        Ok(self.logp.f_sub(&self.old)?)
    }
}

/// The kind of one value per row.
pub(super) fn column(what: &'static str, values: &Tensor, rows: &CompletionRows) -> Result<Kind> {
    let fits = values.size() == [rows.n_rows()] && values.device() == rows.device();
    if fits && values.is_floating_point() {
        return Ok(values.f_kind()?);
    }
    Err(Error::input(
        what,
        format!("[{}], floating point, on {:?}", rows.n_rows(), rows.device()),
        format!("{:?} of {:?} on {:?}", values.size(), values.f_kind()?, values.device()),
    ))
}

/// The ratio of a log-ratio, held at `e^40`, where its gradient becomes zero.
pub(super) fn ratio(log_ratio: &Tensor) -> Result<Tensor> {
    Ok(log_ratio.f_clamp_max(LARGEST_LOG_RATIO)?.f_exp()?)
}

/// `max(−A ρ, −A clip(ρ, 1 − low, 1 + high))` per token, and at most `−A bound` where `A < 0`; from a log-ratio that may be
/// of whole completions.
///
/// A token counts as clipped where the second is strictly the larger, and as clipped by the bound where that makes its
/// value strictly smaller.
pub(super) fn clipped(
    log_ratio: &Tensor,
    advantage: &Tensor,
    (low, high): (f64, f64),
    bound: Option<f64>,
) -> Result<Surrogate> {
    let ratio = ratio(log_ratio)?;
    let push = advantage.f_neg()?;
    let held = push.f_mul(&ratio.f_clamp(1.0 - low, 1.0 + high)?)?;
    let free = push.f_mul(&ratio)?;
    let mut values = free.f_maximum(&held)?;
    let mut dual_clipped = None;
    if let Some(bound) = bound {
        let most = push.f_mul_scalar(bound)?;
        let bad = advantage.f_lt(0.0)?;
        dual_clipped = Some(values.f_gt_tensor(&most)?.f_logical_and(&bad)?);
        values = values.f_minimum(&most)?.f_where_self(&bad, &values)?;
    }
    Ok(Surrogate {
        values,
        ratio: ratio.f_detach()?,
        clipped: Some(held.f_gt_tensor(&free)?),
        dual_clipped,
    })
}

/// [`clipped`] with one log-ratio per completion, `[B]`, whose value stands at each of its rows.
///
/// **Errors**: [`Error::Input`] where the advantages of a completion differ, as they would be averaged.
pub(super) fn clipped_whole(tokens: &Tokens<'_>, log_ratio: &Tensor, bounds: (f64, f64)) -> Result<Surrogate> {
    let (rows, advantage) = (tokens.rows, &tokens.advantage);
    let first = rows.table(advantage)?.f_select(1, 0)?;
    let differs = advantage.f_ne_tensor(&rows.spread(&first)?)?;
    if differs.f_any()?.f_int64_value(&[])? == 1 {
        let expected = "one for all tokens of a completion, as the loss has one ratio for them";
        return Err(Error::input("advantage", expected, "different ones in a completion"));
    }
    clipped(&rows.spread(log_ratio)?, advantage, bounds, None)
}

#[cfg(test)]
pub(super) mod tests {
    use tch::Device;

    use super::*;
    use crate::policy::PolicyLoss;

    /// What a loss gives for log-ratios to old log-probabilities of -1.
    pub(in crate::policy) struct Trial {
        pub(in crate::policy) values: Vec<f64>,
        pub(in crate::policy) slopes: Vec<f64>,
        pub(in crate::policy) ratio: Vec<f64>,
        pub(in crate::policy) clipped: Option<Vec<bool>>,
        pub(in crate::policy) dual_clipped: Option<Vec<bool>>,
    }

    /// Runs a loss on completions of these lengths, with the gradient of the sum of all values.
    pub(in crate::policy) fn trial(
        loss: &dyn PolicyLoss,
        lengths: &[usize],
        log_ratio: &[f64],
        advantage: &[f64],
    ) -> Trial {
        let rows = CompletionRows::new(lengths, Device::Cpu).unwrap();
        let logp = (Tensor::from_slice(log_ratio) - 1.0).set_requires_grad(true);
        let old = (Tensor::from_slice(log_ratio).zeros_like() - 1.0).set_requires_grad(true);
        let advantage = Tensor::from_slice(advantage).set_requires_grad(true);
        let tokens = Tokens::new(&logp, &old, &advantage, &rows).unwrap();
        let ours = loss.surrogate(&tokens).unwrap();
        ours.values.sum(Kind::Double).backward();
        assert!(!old.grad().defined() && !advantage.grad().defined(), "constants");
        assert!(!ours.ratio.requires_grad());
        let mask = |t: Option<Tensor>| t.map(|t| Vec::<bool>::try_from(t).unwrap());
        Trial {
            values: Vec::try_from(ours.values).unwrap(),
            slopes: Vec::try_from(logp.grad()).unwrap(),
            ratio: Vec::try_from(ours.ratio).unwrap(),
            clipped: mask(ours.clipped),
            dual_clipped: mask(ours.dual_clipped),
        }
    }

    pub(in crate::policy) fn near(ours: &[f64], by_hand: &[f64]) -> bool {
        ours.len() == by_hand.len() && ours.iter().zip(by_hand).all(|(a, b)| (a - b).abs() < 1e-12)
    }

    #[test]
    fn a_ratio_is_held_at_its_largest_and_falls_to_zero() {
        let log_ratio = Tensor::from_slice(&[-1e4f64, 0.0, 39.0, 41.0, 1e4]).set_requires_grad(true);
        let ours = ratio(&log_ratio).unwrap();
        ours.sum(Kind::Double).backward();
        let (e39, e40) = (39f64.exp(), 40f64.exp());
        assert_eq!(Vec::<f64>::try_from(ours).unwrap(), [0.0, 1.0, e39, e40, e40]);
        assert_eq!(
            Vec::<f64>::try_from(log_ratio.grad()).unwrap(),
            [0.0, 1.0, e39, 0.0, 0.0]
        );
    }

    #[test]
    fn a_whole_completion_has_one_advantage() {
        let rows = CompletionRows::new(&[1, 3], Device::Cpu).unwrap();
        let logp = Tensor::from_slice(&[-1.0f64, -0.5, -2.0, -0.1]);
        let of = |advantage: [f64; 4]| {
            let advantage = Tensor::from_slice(&advantage);
            let tokens = Tokens::new(&logp, &logp, &advantage, &rows).unwrap();
            clipped_whole(&tokens, &Tensor::from_slice(&[0.0f64, 2f64.ln()]), (0.2, 0.2))
        };
        let ours = Vec::<f64>::try_from(of([3.0, -1.0, -1.0, -1.0]).unwrap().values).unwrap();
        assert!(near(&ours, &[-3.0, 2.0, 2.0, 2.0]), "{ours:?}");
        for varied in [
            [3.0, -1.0, -1.0, 1.0],
            [3.0, -1.0, -1.0 - 1e-15, -1.0],
            [0.0, 1.0, 0.0, 0.0],
        ] {
            assert_eq!(
                of(varied).unwrap_err().to_string(),
                "advantage: expected one for all tokens of a completion, as the loss has one ratio for them, got \
                 different ones in a completion"
            );
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let rows = CompletionRows::new(&[2, 1], Device::Cpu).unwrap();
        let (three, two) = (Tensor::from_slice(&[0.0f64; 3]), Tensor::from_slice(&[0.0f64; 2]));
        let whole = Tensor::from_slice(&[0i64; 3]);
        let text = |logp, old, advantage| Tokens::new(logp, old, advantage, &rows).unwrap_err().to_string();
        let expected =
            |what: &str, got: &str| format!("{what}: expected [3], floating point, on Cpu, got {got} on Cpu");
        assert_eq!(text(&two, &three, &three), expected("logp", "[2] of Double"));
        assert_eq!(text(&three, &two, &three), expected("old", "[2] of Double"));
        assert_eq!(text(&three, &three, &whole), expected("advantage", "[3] of Int64"));
        assert_eq!(
            text(&three.view([3, 1]), &three, &three),
            expected("logp", "[3, 1] of Double")
        );
        let tokens = Tokens::new(&three.to_kind(Kind::Float), &three, &three, &rows).unwrap();
        assert_eq!((tokens.old.kind(), tokens.advantage.kind()), (Kind::Float, Kind::Float));
    }
}
