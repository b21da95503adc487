//! Which columns of a file hold prompt, completion and label.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::record::Label;

/// Which columns of a file to read, as written in a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Columns {
    /// The column with the dialogue so far, a turn per line.
    pub prompt: String,
    /// The column with the turn that follows.
    pub completion: String,
    /// The column that judges the completion; without it every example is unlabelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<LabelColumn>,
}

/// A column of judgements and what its values mean.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelColumn {
    /// The column.
    pub column: String,
    /// The values that mean a completion to give.
    #[serde(default)]
    pub positive: Vec<LabelValue>,
    /// The values that mean a completion not to give.
    #[serde(default)]
    pub negative: Vec<LabelValue>,
    /// The values that mean a completion without a judgement.
    #[serde(default)]
    pub unlabelled: Vec<LabelValue>,
}

/// A value of a label column. A file without types (CSV) holds its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LabelValue {
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Number(i64),
    /// Text, compared exactly.
    Text(String),
}

impl std::fmt::Display for LabelValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bool(value) => value.fmt(f),
            Self::Number(value) => value.fmt(f),
            Self::Text(value) => value.fmt(f),
        }
    }
}

impl Columns {
    /// Refuses a mapping that contradicts itself.
    ///
    /// # Errors
    /// When one column has two roles, the label column maps no value, or a value has two labels.
    pub fn check(&self) -> Result<()> {
        let mut roles = vec![("prompt", &self.prompt), ("completion", &self.completion)];
        roles.extend(self.label.as_ref().map(|l| ("label", &l.column)));
        for (i, (role, column)) in roles.iter().enumerate() {
            if let Some((other, _)) = roles[..i].iter().find(|(_, c)| c == column) {
                let message = format!("`{column}` is both `{other}` and `{role}`");
                return Err(Error::Mapping(message));
            }
        }
        let Some(label) = &self.label else { return Ok(()) };
        let values: Vec<_> = label.values().collect();
        if values.is_empty() {
            let message = format!("label column `{}`: expected mapped values, got none", label.column);
            return Err(Error::Mapping(message));
        }
        for (i, (value, means)) in values.iter().enumerate() {
            if let Some((_, other)) = values[..i].iter().find(|(v, _)| v == value) {
                let (means, other) = (name(*means), name(*other));
                let message = if means == other {
                    format!("label `{value}` is listed twice as `{means}`")
                } else {
                    format!("label `{value}` is both `{other}` and `{means}`")
                };
                return Err(Error::Mapping(message));
            }
        }
        Ok(())
    }
}

impl LabelColumn {
    /// Every mapped value as text, with its meaning.
    pub(crate) fn values(&self) -> impl Iterator<Item = (String, Label)> {
        let sides = [
            (&self.positive, Label::Positive),
            (&self.negative, Label::Negative),
            (&self.unlabelled, Label::Unlabelled),
        ];
        sides
            .into_iter()
            .flat_map(|(list, label)| list.iter().map(move |v| (v.to_string(), label)))
    }
}

fn name(label: Label) -> &'static str {
    match label {
        Label::Positive => "positive",
        Label::Negative => "negative",
        Label::Unlabelled => "unlabelled",
    }
}

#[cfg(test)]
mod tests {
    use super::Columns;

    fn columns(label: &str) -> Columns {
        let text = format!(r#"{{"prompt": "context", "completion": "response"{label}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    fn refused(label: &str) -> String {
        columns(label).check().unwrap_err().to_string()
    }

    #[test]
    fn a_mapping_names_roles_and_values() {
        assert!(columns("").check().is_ok());
        let mapped = columns(r#", "label": {"column": "y", "positive": ["Safe", true], "negative": [0, "Unsafe"]}"#);
        assert!(mapped.check().is_ok());
        let again: Columns = serde_json::from_str(&serde_json::to_string(&mapped).unwrap()).unwrap();
        assert_eq!(again, mapped);
        assert!(serde_json::from_str::<Columns>(r#"{"prompt": "a", "reply": "b"}"#).is_err());
    }

    #[test]
    fn contradictions_are_named() {
        assert_eq!(
            refused(r#", "label": {"column": "context", "positive": ["a"]}"#),
            "columns: `context` is both `prompt` and `label`"
        );
        assert_eq!(
            refused(r#", "label": {"column": "y"}"#),
            "columns: label column `y`: expected mapped values, got none"
        );
        assert_eq!(
            refused(r#", "label": {"column": "y", "positive": [1], "negative": ["1"]}"#),
            "columns: label `1` is both `positive` and `negative`"
        );
        assert_eq!(
            refused(r#", "label": {"column": "y", "positive": ["a", "a"]}"#),
            "columns: label `a` is listed twice as `positive`"
        );
    }
}
