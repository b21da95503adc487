//! From the fields of one row to examples: mapped columns or one of the field's standard shapes.

use serde_json::{Map, Value};

use crate::columns::{Columns, LabelColumn};
use crate::error::{Error, Place, Result, nearest};
use crate::record::{Example, Label, Message};
use crate::turns;

/// The shapes recognised by their column names, for error messages.
pub(crate) const SHAPES: &str = "  prompt, completion            unlabelled\n  \
     prompt, completion, label     label is true (positive) or false (negative)\n  \
     prompt, chosen, rejected      a positive and a negative example per row\n  \
     chosen, rejected              the same, as conversations that differ in their last message\n  \
     messages                      a list of role and content; the last is the completion";

/// One row of a file as named values.
pub(crate) type Fields = Map<String, Value>;

/// How a row becomes examples.
#[derive(Clone, Debug)]
pub(crate) enum Shape {
    Mapped(Columns),
    Completion,
    LabelledCompletion,
    Preference,
    ImplicitPreference,
    Messages,
}

impl Shape {
    /// The shape of a file with these columns.
    pub(crate) fn of(mapping: Option<&Columns>, found: &[String], place: &Place) -> Result<Self> {
        if let Some(columns) = mapping {
            columns.check()?;
            return Ok(Self::Mapped(columns.clone()));
        }
        let has = |name: &str| found.iter().any(|f| f == name);
        let completion = if has("label") {
            Self::LabelledCompletion
        } else {
            Self::Completion
        };
        let candidates = [
            (has("prompt") && has("completion"), completion),
            (
                has("chosen") && has("rejected"),
                match has("prompt") {
                    true => Self::Preference,
                    false => Self::ImplicitPreference,
                },
            ),
            (has("messages"), Self::Messages),
        ];
        let mut fitting = candidates.into_iter().filter(|(fits, _)| *fits).map(|(_, shape)| shape);
        let unknown = |why| {
            let found = found.to_vec();
            Err(Error::UnknownShape {
                place: place.clone(),
                why,
                found,
            })
        };
        match (fitting.next(), fitting.next()) {
            (Some(shape), None) => Ok(shape),
            (None, _) => unknown("expected columns of a known shape"),
            (Some(_), Some(_)) => unknown("expected columns of one shape only"),
        }
    }

    /// The columns that every row must have.
    pub(crate) fn needed(&self) -> Vec<&str> {
        match self {
            Self::Mapped(columns) => {
                let label = columns.label.as_ref().map(|l| l.column.as_str());
                [columns.prompt.as_str(), &columns.completion]
                    .into_iter()
                    .chain(label)
                    .collect()
            }
            Self::Completion => vec!["prompt", "completion"],
            Self::LabelledCompletion => vec!["prompt", "completion", "label"],
            Self::Preference => vec!["prompt", "chosen", "rejected"],
            Self::ImplicitPreference => vec!["chosen", "rejected"],
            Self::Messages => vec!["messages"],
        }
    }

    /// The examples of one row.
    pub(crate) fn examples(&self, id: &str, place: &Place, fields: &Fields, into: &mut Vec<Example>) -> Result<()> {
        let row = Row { place, fields };
        let mut push = |id: String, prompt: &Side, completion: Side, label| {
            if completion.text.is_empty() {
                return Err(Error::EmptyCompletion { place: place.clone() });
            }
            let messages = match (&prompt.messages, completion.messages) {
                // Text of the prompt has no roles.
                (None, _) => Vec::new(),
                (Some(earlier), last) => earlier.iter().cloned().chain(last.unwrap_or_default()).collect(),
            };
            into.push(Example {
                id,
                prompt: prompt.text.clone(),
                completion: completion.text,
                label,
                seen_prompt: false,
                messages,
            });
            Ok(())
        };
        match self {
            Self::Mapped(columns) => {
                let label = match &columns.label {
                    Some(label) => row.mapped_label(label)?,
                    None => Label::Unlabelled,
                };
                let completion = row.completion(&columns.completion)?;
                push(id.to_owned(), &row.prompt(&columns.prompt)?, completion, label)
            }
            Self::Completion | Self::LabelledCompletion => {
                let label = match self {
                    Self::LabelledCompletion => row.true_or_false("label")?,
                    _ => Label::Unlabelled,
                };
                push(
                    id.to_owned(),
                    &row.prompt("prompt")?,
                    row.completion("completion")?,
                    label,
                )
            }
            Self::Preference | Self::ImplicitPreference => {
                // A text beside a prompt is a completion, whoever it names.
                let texts = matches!(self, Self::ImplicitPreference);
                let whole = [row.conversation("chosen", texts)?, row.conversation("rejected", texts)?];
                let (prompt, chosen, rejected) = match (self, whole) {
                    (_, [Some(chosen), Some(rejected)]) => {
                        let (earlier, chosen, rejected) = row.last_messages(chosen, rejected)?;
                        if matches!(self, Self::Preference) {
                            row.said_in(&earlier)?;
                        }
                        (Side::of(earlier), Side::of(vec![chosen]), Side::of(vec![rejected]))
                    }
                    (Self::ImplicitPreference, _) => return Err(row.no_prompt()),
                    _ => {
                        let sides = (row.completion("chosen")?, row.completion("rejected")?);
                        (row.prompt("prompt")?, sides.0, sides.1)
                    }
                };
                push(format!("{id}:chosen"), &prompt, chosen, Label::Positive)?;
                push(format!("{id}:rejected"), &prompt, rejected, Label::Negative)
            }
            Self::Messages => {
                let mut messages = row.messages("messages", row.value("messages")?)?;
                match messages.pop() {
                    Some(last) if last.role == "assistant" => push(
                        id.to_owned(),
                        &Side::of(messages),
                        Side::of(vec![last]),
                        Label::Unlabelled,
                    ),
                    Some(last) => Err(row.wrong(
                        "messages",
                        "a last message with the role `assistant`",
                        format!("role `{}`", last.role),
                    )),
                    None => Err(row.wrong("messages", "at least one message", "none")),
                }
            }
        }
    }
}

/// A prompt or a completion: as text with a turn per line, and with its roles where it has some.
struct Side {
    text: String,
    messages: Option<Vec<Message>>,
}

impl Side {
    fn of(messages: Vec<Message>) -> Self {
        Self {
            text: turns::joined(messages.iter().map(|message| &message.content)),
            messages: Some(messages),
        }
    }
}

/// A row while it is read.
struct Row<'a> {
    place: &'a Place,
    fields: &'a Fields,
}

impl<'a> Row<'a> {
    fn value(&self, column: &str) -> Result<&'a Value> {
        self.fields
            .get(column)
            .ok_or_else(|| missing(self.place, column, self.fields.keys()))
    }

    fn wrong(&self, column: &str, expected: &str, got: impl Into<String>) -> Error {
        self.place.clone().malformed(format!("{expected} in `{column}`"), got)
    }

    /// Text with a turn per line, or a list of messages.
    fn prompt(&self, column: &str) -> Result<Side> {
        match self.value(column)? {
            Value::String(text) => Ok(Side {
                text: turns::dialogue(text),
                messages: None,
            }),
            value @ Value::Array(_) => Ok(Side::of(self.messages(column, value)?)),
            other => Err(self.wrong(column, "text", kind(other))),
        }
    }

    /// One turn, or a list of one message of the assistant.
    fn completion(&self, column: &str) -> Result<Side> {
        match self.value(column)? {
            Value::String(text) => Ok(Side {
                text: turns::turn(text),
                messages: Some(vec![Message::new("assistant", text.clone())]),
            }),
            value @ Value::Array(_) => {
                let messages = self.messages(column, value)?;
                match messages.as_slice() {
                    [one] if one.role == "assistant" => Ok(Side::of(messages)),
                    _ => {
                        let got = format!("{} messages", messages.len());
                        Err(self.wrong(column, "one message with the role `assistant`", got))
                    }
                }
            }
            other => Err(self.wrong(column, "text", kind(other))),
        }
    }

    /// A whole conversation: a list of several messages, or among `texts` one in which people and assistant are named at the
    /// beginnings of their turns; nothing where it is neither.
    fn conversation(&self, column: &str, texts: bool) -> Result<Option<Vec<Message>>> {
        match self.value(column)? {
            Value::String(text) if texts => Ok(turns::named(text)),
            value @ Value::Array(list) if list.len() > 1 => Ok(Some(self.messages(column, value)?)),
            _ => Ok(None),
        }
    }

    /// Two conversations that differ in their last message alone, which is the assistant's: what they share, and the last
    /// messages.
    fn last_messages(
        &self,
        mut chosen: Vec<Message>,
        mut rejected: Vec<Message>,
    ) -> Result<(Vec<Message>, Message, Message)> {
        let last = |column: &str, all: &mut Vec<Message>| match all.pop() {
            Some(last) if last.role == "assistant" => Ok(last),
            last => {
                let got = last.map_or("none".to_owned(), |last| format!("role `{}`", last.role));
                Err(self.wrong(column, "a last message with the role `assistant`", got))
            }
        };
        let ends = (last("chosen", &mut chosen)?, last("rejected", &mut rejected)?);
        match chosen == rejected && !chosen.is_empty() {
            true => Ok((chosen, ends.0, ends.1)),
            false => {
                let at = chosen.iter().zip(&rejected).take_while(|(a, b)| a == b).count() + 1;
                let got = format!("conversations that differ from message {at} on");
                Err(self.wrong("rejected", "the messages of `chosen` before the last one", got))
            }
        }
    }

    /// Refuses a prompt that is no message of the conversation that stands beside it.
    fn said_in(&self, messages: &[Message]) -> Result<()> {
        let said = match self.value("prompt")? {
            Value::String(text) => messages.iter().any(|message| message.content == *text),
            value => self.messages("prompt", value)? == messages,
        };
        match said {
            true => Ok(()),
            false => Err(self.wrong(
                "prompt",
                "what is said in `chosen` before its last message",
                "something else",
            )),
        }
    }

    fn no_prompt(&self) -> Error {
        let got =
            "text without a prompt\nhint: give the prompt in a column `prompt`, or conversations as lists of messages";
        self.wrong("chosen", "a conversation", got)
    }

    fn messages(&self, column: &str, value: &Value) -> Result<Vec<Message>> {
        let expected = "a list of messages with `role` and `content`";
        let list = value
            .as_array()
            .ok_or_else(|| self.wrong(column, expected, kind(value)))?;
        let mut messages = Vec::with_capacity(list.len());
        for message in list {
            let text = |key: &str| message.get(key).and_then(Value::as_str);
            let (Some(role), Some(content)) = (text("role"), text("content")) else {
                return Err(self.wrong(column, expected, shortened(&message.to_string())));
            };
            if !["system", "user", "assistant"].contains(&role) {
                let expected = "the role `system`, `user` or `assistant`";
                return Err(self.wrong(column, expected, format!("`{}`", shortened(role))));
            }
            messages.push(Message::new(role, content));
        }
        Ok(messages)
    }

    fn mapped_label(&self, label: &LabelColumn) -> Result<Label> {
        let value = self.value(&label.column)?;
        let text = match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let known: Vec<(String, Label)> = label.values().collect();
        match known.iter().find(|(mapped, _)| *mapped == text) {
            Some((_, label)) => Ok(*label),
            None => Err(Error::UnknownLabel {
                place: self.place.clone(),
                known: known.into_iter().map(|(value, _)| value).collect(),
                got: shortened(&text),
            }),
        }
    }

    /// A label of the standard shape; files without types spell it in several ways.
    fn true_or_false(&self, column: &str) -> Result<Label> {
        let value = self.value(column)?;
        let truth = match value {
            Value::Bool(truth) => Some(*truth),
            Value::Number(number) => match number.as_i64() {
                Some(1) => Some(true),
                Some(0) => Some(false),
                _ => None,
            },
            Value::String(text) => match text.trim().to_ascii_lowercase().as_str() {
                "true" | "1" => Some(true),
                "false" | "0" => Some(false),
                _ => None,
            },
            _ => None,
        };
        match truth {
            Some(true) => Ok(Label::Positive),
            Some(false) => Ok(Label::Negative),
            None => {
                let got = format!(
                    "`{}`\nhint: say what the values mean with a `columns` mapping",
                    shortened(&value.to_string())
                );
                Err(self.wrong(column, "true or false", got))
            }
        }
    }
}

/// The error for a column that is not there.
pub(crate) fn missing<'a>(place: &Place, column: &str, found: impl Iterator<Item = &'a String>) -> Error {
    let found: Vec<String> = found.cloned().collect();
    let nearest = nearest(column, found.iter().map(String::as_str));
    Error::MissingColumn {
        place: place.clone(),
        column: column.to_owned(),
        found,
        nearest,
    }
}

pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A value short enough for a message.
pub(crate) fn shortened(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
