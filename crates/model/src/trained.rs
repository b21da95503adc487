//! Which parts of a model an optimiser updates.

use serde::{Deserialize, Serialize};

/// The part of a model that is trained, in manifests a map of one key: `{ all: {} }` or `{ top: { layers: 3 } }`.
///
/// ```
/// use unsay_model::Trained;
///
/// let trained: Trained = serde_json::from_str(r#"{ "top": { "layers": 3 } }"#).unwrap();
/// assert_eq!(trained, Trained::Top { layers: 3 });
/// assert_eq!(Trained::default(), Trained::All {});
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Trained {
    /// Everything.
    All {},
    /// The last blocks, the final norm, and what stands on it: a score, or an output embedding of its own. The input
    /// embedding stays as it is, and with it an output embedding that is tied to it.
    Top {
        /// How many blocks, from the last; at least 1 and at most as many as there are.
        layers: usize,
    },
}

impl Default for Trained {
    fn default() -> Self {
        Self::All {}
    }
}

impl Trained {
    /// Whether this is what a manifest gets that does not say.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// What is out of range for a model of `n_layers` blocks, where that is known, as (field, message).
    pub fn check(&self, n_layers: Option<usize>) -> Vec<(String, String)> {
        let Self::Top { layers } = self else {
            return Vec::new();
        };
        let wanted = match n_layers {
            Some(most) if *layers > most => format!("at most {most}, the blocks of the model"),
            _ if *layers == 0 => "at least 1".to_owned(),
            _ => return Vec::new(),
        };
        vec![("layers".to_owned(), format!("expected {wanted}, got {layers}"))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_the_model() {
        let top = |layers| Trained::Top { layers };
        assert!(top(3).check(Some(3)).is_empty() && top(3).check(None).is_empty());
        assert!(Trained::default().check(Some(1)).is_empty());
        assert_eq!(
            top(4).check(Some(3)),
            [(
                "layers".to_owned(),
                "expected at most 3, the blocks of the model, got 4".to_owned()
            )]
        );
        assert_eq!(top(0).check(Some(3))[0].1, "expected at least 1, got 0");
        assert_eq!(top(0).check(None).len(), 1);
    }

    #[test]
    fn manifests_write_one_key() {
        let read = |text: &str| serde_json::from_str::<Trained>(text);
        assert_eq!(read(r#"{"all": {}}"#).unwrap(), Trained::default());
        assert!(read(r#"{"top": {}}"#).is_err());
        assert!(read(r#"{"top": {"layers": 1, "norm": false}}"#).is_err());
        assert!(read(r#"{"bottom": {"layers": 1}}"#).is_err());
        assert!(!Trained::Top { layers: 1 }.is_default());
    }
}
