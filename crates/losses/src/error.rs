//! What can be wrong with a loss's parameters or inputs.

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// What is wrong, with what was expected and what was given.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A parameter outside its range.
    #[error("`{name}` is {value}, expected {range}")]
    Range {
        /// The parameter as the manifest spells it, after the loss: `cringe.alpha`.
        name: &'static str,
        /// The value given.
        value: String,
        /// The values allowed.
        range: &'static str,
    },
    /// A tensor of the wrong shape, type or content.
    #[error("{what}: expected {expected}, got {got}")]
    Input {
        /// The tensor.
        what: &'static str,
        /// What it should be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// Nothing was handed in.
    #[error("{what} is empty")]
    Empty {
        /// What has no rows.
        what: &'static str,
    },
    /// The whole batch holds no token that this loss trains.
    #[error("`{loss}` has nothing to learn from: {found}\nhint: {hint}")]
    NothingToLearn {
        /// The loss's name.
        loss: &'static str,
        /// What the batch holds instead.
        found: String,
        /// What to change.
        hint: &'static str,
    },
    /// libtorch refused, for instance because memory ran out.
    #[error("libtorch: {}", .0.to_string().lines().next().unwrap_or_default())]
    Torch(#[from] tch::TchError),
}

impl Error {
    /// An [`Error::Input`] from anything printable.
    pub(crate) fn input(what: &'static str, expected: impl ToString, got: impl ToString) -> Self {
        Error::Input {
            what,
            expected: expected.to_string(),
            got: got.to_string(),
        }
    }
}

/// The first of some problems as the error, if there is one.
pub(crate) fn first(problems: Vec<Error>) -> Result<()> {
    problems.into_iter().next().map_or(Ok(()), Err)
}

/// A parameter that must be finite and at least zero, as most weights are.
pub(crate) fn not_negative(name: &'static str, value: f64) -> Option<Error> {
    let fine = value.is_finite() && value >= 0.0;
    (!fine).then(|| Error::Range {
        name,
        value: value.to_string(),
        range: "a finite number, at least 0",
    })
}

/// A parameter that must be finite.
pub(crate) fn finite(name: &'static str, value: f64) -> Option<Error> {
    (!value.is_finite()).then(|| Error::Range {
        name,
        value: value.to_string(),
        range: "a finite number",
    })
}

/// A parameter that must be finite and above zero, as scales are.
pub(crate) fn positive(name: &'static str, value: f64) -> Option<Error> {
    let fine = value.is_finite() && value > 0.0;
    (!fine).then(|| Error::Range {
        name,
        value: value.to_string(),
        range: "a finite number above 0",
    })
}

/// A share of labels believed to be wrong: at one half there is nothing left to learn.
pub(crate) fn smoothing(name: &'static str, value: f64) -> Option<Error> {
    (!(0.0..0.5).contains(&value)).then(|| Error::Range {
        name,
        value: value.to_string(),
        range: "a number from 0 up to, but not, 0.5",
    })
}

/// A share of labels believed to be wrong that must not be zero: where its logarithm is taken.
pub(crate) fn inner_smoothing(name: &'static str, value: f64) -> Option<Error> {
    let fine = value > 0.0 && value < 0.5;
    (!fine).then(|| Error::Range {
        name,
        value: value.to_string(),
        range: "a number above 0 and below 0.5",
    })
}

/// A share of a whole, both ends included.
pub(crate) fn share(name: &'static str, value: f64) -> Option<Error> {
    (!(0.0..=1.0).contains(&value)).then(|| Error::Range {
        name,
        value: value.to_string(),
        range: "a number from 0 to 1",
    })
}

/// A share of a whole that must not be nothing.
pub(crate) fn some_share(name: &'static str, value: f64) -> Option<Error> {
    let fine = value > 0.0 && value <= 1.0;
    (!fine).then(|| Error::Range {
        name,
        value: value.to_string(),
        range: "a number above 0, at most 1",
    })
}

/// A bound that must lie above 1, where ratios start.
pub(crate) fn above_one(name: &'static str, value: f64) -> Option<Error> {
    let fine = value.is_finite() && value > 1.0;
    (!fine).then(|| Error::Range {
        name,
        value: value.to_string(),
        range: "a finite number above 1",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_have_both_ends_or_only_the_upper() {
        for (value, whole, some) in [
            (-1e-9, false, false),
            (0.0, true, false),
            (1e-300, true, true),
            (1.0, true, true),
            (1.0 + 1e-9, false, false),
            (f64::NAN, false, false),
        ] {
            assert_eq!(share("x", value).is_none(), whole, "{value}");
            assert_eq!(some_share("x", value).is_none(), some, "{value}");
        }
    }

    #[test]
    fn parts_are_printed_as_the_manifest_spells_them() {
        use crate::paired::{Divergence, Logps, Weighting};
        use crate::policy::Aggregate;

        let mut printed = 0;
        let mut same = |ours: String, json: serde_json::Result<String>| {
            assert_eq!(ours.replace(' ', ""), json.unwrap().replace('"', ""));
            printed += 1;
        };
        for logps in [Logps::Sum, Logps::Mean, Logps::Ld { alpha: 0.5 }] {
            same(logps.to_string(), serde_json::to_string(&logps));
        }
        for weighting in [Weighting::None, Weighting::Wpo { clamp: true }] {
            same(weighting.to_string(), serde_json::to_string(&weighting));
        }
        for divergence in [
            Divergence::ReverseKl,
            Divergence::ForwardKl,
            Divergence::Js,
            Divergence::Alpha { alpha: 0.5 },
        ] {
            same(divergence.to_string(), serde_json::to_string(&divergence));
        }
        for aggregate in [
            Aggregate::TokenMean,
            Aggregate::SequenceMean,
            Aggregate::SequenceSum,
            Aggregate::FixedLength { length: 7 },
        ] {
            same(aggregate.to_string(), serde_json::to_string(&aggregate));
        }
        assert_eq!(printed, 13);
    }

    #[test]
    fn other_ranges_end_where_they_say() {
        for (value, smooth, above) in [
            (0.0, false, false),
            (1e-300, true, false),
            (0.499, true, false),
            (0.5, false, false),
            (1.0, false, false),
            (1.0 + 1e-9, false, true),
            (f64::INFINITY, false, false),
            (f64::NAN, false, false),
        ] {
            assert_eq!(inner_smoothing("x", value).is_none(), smooth, "{value}");
            assert_eq!(above_one("x", value).is_none(), above, "{value}");
        }
        assert!(smoothing("x", 0.0).is_none() && smoothing("x", 0.5).is_some() && smoothing("x", -1e-9).is_some());
        assert!(finite("x", -1e300).is_none() && finite("x", f64::NAN).is_some());
        assert!(positive("x", 1e-300).is_none() && positive("x", 0.0).is_some());
        assert!(not_negative("x", 0.0).is_none() && not_negative("x", -1e-300).is_some());
    }
}
