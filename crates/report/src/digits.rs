//! How many digits a number deserves.

/// Decimals that show two significant digits of the precision, at most four.
pub(crate) fn decimals(half_width: f64) -> usize {
    if !(half_width.is_finite() && half_width > 0.0) {
        return 3;
    }
    (1.0 - half_width.log10().floor()).clamp(0.0, 4.0) as usize
}

/// A number with a true minus sign, in a scientific form where a plain one would be long.
pub(crate) fn number(value: f64, decimals: usize) -> String {
    let text = if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        "∞".to_owned()
    } else if value.abs() >= 1e7 {
        format!("{:.2e}", value.abs())
    } else {
        format!("{:.decimals$}", value.abs())
    };
    let zero = text.chars().all(|c| c == '0' || c == '.');
    if value < 0.0 && !zero {
        format!("−{text}")
    } else {
        text
    }
}

/// A number with its sign.
pub(crate) fn signed(value: f64, decimals: usize) -> String {
    let text = number(value, decimals);
    if value > 0.0 { format!("+{text}") } else { text }
}

/// A share.
pub(crate) fn share(value: f64) -> String {
    number(value, 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_follow_the_precision() {
        for (half, expected) in [
            (0.023, 3),
            (0.23, 2),
            (2.3, 1),
            (23.0, 0),
            (0.000_01, 4),
            (0.0, 3),
            (f64::NAN, 3),
        ] {
            assert_eq!(decimals(half), expected, "{half}");
        }
    }

    #[test]
    fn signs_and_extremes() {
        assert_eq!(number(-0.5, 2), "−0.50");
        assert_eq!(number(-0.001, 2), "0.00");
        assert_eq!(number(f64::NEG_INFINITY, 2), "−∞");
        assert_eq!(number(123_456_789.0, 1), "1.23e8");
        assert_eq!(signed(0.25, 1), "+0.2");
        assert_eq!(signed(-3.0, 0), "−3");
        assert_eq!(signed(0.0, 1), "0.0");
    }
}
