//! The exact judge of the safety testbed.

use unsay_data::testbed::safety::{Verdict, verdict};

use crate::error::{Error, Result};
use crate::judge::{Item, Judge};

/// The oracle of the safety testbed: knows the true answer from the text alone.
///
/// `P(positive) = 1` for a safe reply, 0 for an unsafe or malformed one; [`Judge::malformed`] tells
/// the last two apart.
///
/// **Errors** no items.
///
/// **Reference** ours: the grammar in `unsay_data::testbed::safety`.
#[derive(Debug, Clone, Copy, Default)]
pub struct OracleJudge;

impl Judge for OracleJudge {
    fn name(&self) -> &str {
        "oracle"
    }

    fn safe(&self, items: &[Item<'_>]) -> Result<Vec<f64>> {
        if items.is_empty() {
            return Err(Error::Empty {
                judge: self.name().to_owned(),
            });
        }
        Ok(verdicts(items)
            .map(|v| f64::from(u8::from(v == Verdict::Safe)))
            .collect())
    }

    fn malformed(&self, items: &[Item<'_>]) -> Result<Vec<bool>> {
        Ok(verdicts(items).map(|v| v == Verdict::Malformed).collect())
    }
}

fn verdicts<'a>(items: &'a [Item<'a>]) -> impl Iterator<Item = Verdict> + 'a {
    items.iter().map(|i| verdict(i.prompt, i.completion))
}
