//! Advantages of completions from the rewards of others for the same prompt.
//!
//! Rewards lie **prompt-major**: completion `s` of prompt `p` at `p · K + s`, so that a group of `K` is one stretch. The other
//! order, `s · P + p`, cannot be told from it by its length; some released code has it.

use serde::{Deserialize, Serialize};

use crate::error::positive;
use crate::{Error, Result};

/// What the distance from the group's mean is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// The deviation of the group's rewards.
    Group,
    /// The deviation of all rewards of the batch.
    Batch,
    /// Nothing.
    None,
}

/// Which standard deviation of `n` numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Deviation {
    /// With `n − 1`.
    #[default]
    Sample,
    /// With `n`.
    Population,
}

/// How several rewards of a completion become one advantage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Combination {
    /// Their weighted sum is normalised.
    #[default]
    SumThenNormalise,
    /// Each is normalised by itself, and their weighted sum once more over the batch.
    NormaliseThenSum,
}

/// How rewards become advantages in [`group_normalised`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalisation {
    /// What the distance from the group's mean is divided by.
    pub scale: Scale,
    /// What is added to the deviation; finite, above 0. TRL has 1e-4, verl 1e-6, HALOs 1e-2.
    pub eps: f64,
    /// Which deviation; HALOs has that of the population.
    #[serde(default)]
    pub deviation: Deviation,
    /// How several rewards become one advantage.
    #[serde(default)]
    pub combination: Combination,
}

impl Normalisation {
    /// Every parameter outside its range.
    pub fn problems(&self) -> Vec<Error> {
        positive("normalisation.eps", self.eps).into_iter().collect()
    }
}

impl Deviation {
    /// Mean and deviation of those that are numbers; zeros where there are too few.
    ///
    /// **Errors**: [`Error::Input`] where the squares add up to more than a number can be, as the deviation would be
    /// infinite and every distance 0 in units of it.
    fn moments(self, what: &'static str, values: &[f64]) -> Result<(f64, f64)> {
        let known: Vec<f64> = values.iter().copied().filter(|x| !x.is_nan()).collect();
        if known.is_empty() {
            return Ok((0.0, 0.0));
        }
        let n = known.len() as f64;
        let mean = known.iter().sum::<f64>() / n;
        let squares: f64 = known.iter().map(|x| (x - mean).powi(2)).sum();
        let divisor = match self {
            Deviation::Sample => n - 1.0,
            Deviation::Population => n,
        };
        if !squares.is_finite() {
            return Err(too_large(what));
        }
        // One number has no deviation in either sense.
        Ok((mean, if divisor > 0.0 { (squares / divisor).sqrt() } else { 0.0 }))
    }
}

/// Each reward minus the mean of the others of its group.
///
/// `A_i = r_i − (1/(K − 1)) Σ_{j≠i} r_j`
///
/// **Shapes**: `rewards` of `P` prompts with `group` completions each, prompt-major; the result likewise.
///
/// **Parameters**: `rewards` finite, or NaN for a completion that could not be scored: it is left out of the others' means,
/// its advantage is 0, and so is that of a completion without any other; `group` `K`, at least 2.
///
/// **Errors**: [`Error::Empty`] without rewards; [`Error::Input`] for infinite ones and those whose sums are, a group of less
/// than 2, or rewards that are not whole groups.
///
/// **On negatives**: a completion below the mean of the others gets a negative advantage; those of a group add up to 0.
///
/// **Reference**: A. Ahmadian, C. Cremer, M. Gallé, M. Fadaee, J. Kreutzer, O. Pietquin, A. Üstün, S. Hooker, "Back to
/// basics: Revisiting REINFORCE-style optimization for learning from human feedback in LLMs", 2024; W. Kool, H. van
/// Hoof, M. Welling, "Buy 4 REINFORCE samples, get a baseline for free!", 2019.
///
/// **Differs from the paper**: no; NaN as in TRL. A penalty on leaving the reference is part of the reward and is to be
/// subtracted before.
///
/// ```
/// use unsay_losses::policy::leave_one_out;
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let advantages = leave_one_out(&[3.0, 1.0, 2.0, /* the next prompt */ 5.0, f64::NAN, 7.0], 3)?;
/// assert_eq!(advantages, [1.5, -1.5, 0.0, -2.0, 0.0, 2.0]);
/// # Ok(()) }
/// ```
pub fn leave_one_out(rewards: &[f64], group: usize) -> Result<Vec<f64>> {
    check(rewards, group)?;
    let mut advantages = Vec::with_capacity(rewards.len());
    for own in rewards.chunks(group) {
        let known = own.iter().filter(|x| !x.is_nan());
        let (n, sum) = (known.clone().count() as f64, known.sum::<f64>());
        let advantage = |&r: &f64| match r.is_nan() || n < 2.0 {
            true => 0.0,
            false => r - (sum - r) / (n - 1.0),
        };
        advantages.extend(own.iter().map(advantage));
    }
    match advantages.iter().all(|a| a.is_finite()) {
        true => Ok(advantages),
        false => Err(too_large("rewards")),
    }
}

/// Each reward's distance from the mean of its group, in units of a deviation.
///
/// `A_i = (r_i − r̄)/(s + ε)` with `r̄` the mean of the group and `s` the deviation that [`Scale`] names, or
/// `A_i = r_i − r̄` without a scale. Of several rewards `r = Σ_f w_f r_f`, or with [`Combination::NormaliseThenSum`]
/// `A = (a − ā)/(s_a + ε)` over the batch, where `a = Σ_f w_f A_f`.
///
/// **Shapes**: `rewards`: one list per reward function, each of `P` prompts with `group` completions, prompt-major; `weights`
/// one per function; the result like one list.
///
/// **Parameters**: `rewards` finite, or NaN where a function says nothing of a completion: it adds nothing there, and a
/// completion of which none says anything is left out, its advantage 0; `weights` finite; `group` `K`, at least 2; `eps`
/// of `how` finite and above 0.
///
/// **Errors**: [`Error::Empty`] without rewards; [`Error::Range`] for `eps`; [`Error::Input`] for infinite rewards or weights
/// and those whose sums or squares are, lists of different lengths, a group of less than 2, or rewards that are not whole
/// groups.
///
/// **On negatives**: a completion below the mean of its group gets a negative advantage; those of a group add up to 0, but
/// for `NormaliseThenSum`, where those of the batch do. A group in which all rewards are equal gives zeros up to
/// rounding divided by `ε`.
///
/// **Reference**: Z. Shao et al., "DeepSeekMath: Pushing the limits of mathematical reasoning in open language models",
/// 2024, §4.1.2; without a scale: Z. Liu et al., "Understanding R1-Zero-like training: A critical perspective", 2025, §3.2.
///
/// **Differs from the paper**: `ε`, which it does not have.
///
/// ```
/// use unsay_losses::policy::{Combination, Deviation, Normalisation, Scale, group_normalised};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let how = Normalisation {
///     scale: Scale::Group,
///     eps: 1e-4,
///     deviation: Deviation::Sample,
///     combination: Combination::SumThenNormalise,
/// };
/// let advantages = group_normalised(&[&[3.0, 1.0, 2.0]], &[1.0], 3, &how)?;
/// assert!((advantages[0] - 1.0 / 1.0001).abs() < 1e-12 && advantages[2] == 0.0); // the deviation is 1
/// # Ok(()) }
/// ```
pub fn group_normalised(rewards: &[&[f64]], weights: &[f64], group: usize, how: &Normalisation) -> Result<Vec<f64>> {
    let Some(first) = rewards.first() else {
        return Err(Error::Empty {
            what: "the list of rewards",
        });
    };
    crate::error::first(how.problems())?;
    for list in rewards {
        check(list, group)?;
        if list.len() != first.len() {
            return Err(Error::input("rewards", first.len(), list.len()));
        }
    }
    if weights.len() != rewards.len() || !weights.iter().all(|w| w.is_finite()) {
        let expected = format!("{} finite numbers, one per reward", rewards.len());
        return Err(Error::input("weights", expected, format!("{weights:?}")));
    }
    match how.combination {
        Combination::SumThenNormalise => Ok(known(&centred(&summed(rewards, weights)?, group, how)?)),
        Combination::NormaliseThenSum => {
            let each: Result<Vec<Vec<f64>>> = rewards.iter().map(|list| centred(list, group, how)).collect();
            let each = each?;
            let each: Vec<&[f64]> = each.iter().map(Vec::as_slice).collect();
            let sums = summed(&each, weights)?;
            Ok(known(&standardised("rewards", &sums, how.deviation, how.eps)?))
        }
    }
}

/// Each number's distance from the mean of all, in units of their deviation.
///
/// `A_i = (a_i − ā)/(s + ε)` over the whole batch: what TRL does with the advantages of [`leave_one_out`] on demand.
///
/// **Shapes**: any number of `advantages`; as many come back.
///
/// **Parameters**: `advantages` finite; `eps` finite and above 0.
///
/// **Errors**: [`Error::Empty`] without advantages, [`Error::Range`] for `eps`, [`Error::Input`] for what is not finite or
/// whose squares are not.
///
/// **On negatives**: signs may change where the mean is not 0.
///
/// **Reference**: S. Huang, M. Noukhovitch, A. Hosseini, K. Rasul, W. Wang, L. Tunstall, "The N+ implementation details of
/// RLHF with PPO: A case study on TL;DR summarization", 2024.
///
/// **Differs from the paper**: `ε` is added to the deviation, not to the variance.
///
/// ```
/// use unsay_losses::policy::{Deviation, batch_normalised};
///
/// let advantages = batch_normalised(&[1.0, 2.0, 3.0], Deviation::Sample, 1e-4).unwrap();
/// assert!((advantages[2] - 1.0 / 1.0001).abs() < 1e-12);
/// ```
pub fn batch_normalised(advantages: &[f64], deviation: Deviation, eps: f64) -> Result<Vec<f64>> {
    if let Some(problem) = positive("normalisation.eps", eps) {
        return Err(problem);
    }
    if advantages.is_empty() {
        return Err(Error::Empty {
            what: "the list of advantages",
        });
    }
    if let Some(wrong) = advantages.iter().find(|x| !x.is_finite()) {
        return Err(Error::input("advantages", "finite numbers", wrong));
    }
    standardised("advantages", advantages, deviation, eps)
}

/// That rewards are whole groups of at least two, and finite or NaN.
fn check(rewards: &[f64], group: usize) -> Result<()> {
    if rewards.is_empty() {
        return Err(Error::Empty {
            what: "the list of rewards",
        });
    }
    if group < 2 {
        return Err(Error::input("group", "at least 2 completions per prompt", group));
    }
    if !rewards.len().is_multiple_of(group) {
        return Err(Error::input("rewards", format!("groups of {group}"), rewards.len()));
    }
    match rewards.iter().find(|x| x.is_infinite()) {
        Some(wrong) => Err(Error::input("rewards", "finite numbers, or NaN for none", wrong)),
        None => Ok(()),
    }
}

fn too_large(what: &'static str) -> Error {
    Error::input(what, "numbers whose sums and squares are finite", "larger ones")
}

/// Weighted sums over the lists of what is known; NaN where nothing is.
///
/// **Errors**: [`Error::Input`] for a sum that is not finite: an infinite one, less another, is NaN, which means something
/// else here.
fn summed(lists: &[&[f64]], weights: &[f64]) -> Result<Vec<f64>> {
    let n = lists.first().map_or(0, |list| list.len());
    let at = |i: usize| {
        let known = lists.iter().zip(weights).filter(move |(list, _)| !list[i].is_nan());
        let known = known.map(move |(list, weight)| list[i] * weight);
        // Not `sum`, which is 0 for nothing.
        match known.reduce(|a, b| a + b) {
            Some(sum) if !sum.is_finite() => Err(too_large("rewards")),
            sum => Ok(sum.unwrap_or(f64::NAN)),
        }
    };
    (0..n).map(at).collect()
}

/// Distances from the means of groups, scaled; NaN stays NaN.
fn centred(rewards: &[f64], group: usize, how: &Normalisation) -> Result<Vec<f64>> {
    let of_batch = match how.scale {
        Scale::Batch => how.deviation.moments("rewards", rewards)?.1,
        _ => 0.0,
    };
    let mut out = Vec::with_capacity(rewards.len());
    for own in rewards.chunks(group) {
        let (mean, of_group) = how.deviation.moments("rewards", own)?;
        let unit = match how.scale {
            Scale::Group => of_group + how.eps,
            Scale::Batch => of_batch + how.eps,
            Scale::None => 1.0,
        };
        out.extend(own.iter().map(|r| (r - mean) / unit));
    }
    Ok(out)
}

/// Distances from the mean in units of the deviation; NaN stays NaN.
fn standardised(what: &'static str, values: &[f64], deviation: Deviation, eps: f64) -> Result<Vec<f64>> {
    let (mean, unit) = deviation.moments(what, values)?;
    Ok(values.iter().map(|x| (x - mean) / (unit + eps)).collect())
}

/// Zeros in place of NaN.
fn known(values: &[f64]) -> Vec<f64> {
    values.iter().map(|&x| if x.is_nan() { 0.0 } else { x }).collect()
}

#[cfg(test)]
mod tests;
