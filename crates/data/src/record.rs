//! The normal form of a dataset: labelled prompt and completion pairs in three splits.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

/// What the people who made the data say of a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Label {
    /// A completion that the model should give.
    Positive,
    /// A completion that the model should not give.
    Negative,
    /// Plain text without a judgement, as in ordinary dialogue.
    Unlabelled,
}

/// One turn of a conversation, and who says it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Who says it: `system`, `user` or `assistant`; what else there may be is for the chat template to say.
    pub role: String,
    /// What is said, letter by letter.
    pub content: String,
}

impl Message {
    /// A message of this role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
        }
    }
}

/// One completion in its context.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Example {
    /// Names the example within its dataset, over all splits.
    pub id: String,
    /// The turns of the dialogue so far, oldest first, joined by `\n`. May be empty.
    pub prompt: String,
    /// The turn that follows. Never empty and without `\n` when read from a dataset.
    pub completion: String,
    /// What is said of the completion.
    pub label: Label,
    /// True when exactly this prompt occurs in the training split.
    pub seen_prompt: bool,
    /// The whole conversation with its roles, the completion as its last message; empty when the data has no roles. Only
    /// tokenizers with a chat template read it, the others read `prompt` and `completion`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<Message>,
}

impl Example {
    /// The messages before the completion; empty when the data has no roles.
    pub fn prompt_messages(&self) -> &[Message] {
        self.messages.split_last().map_or(&[], |(_, earlier)| earlier)
    }

    /// The messages of this conversation with another completion; empty when the data has no roles.
    pub fn messages_with(&self, completion: &str) -> Vec<Message> {
        let earlier = self.prompt_messages().iter().cloned();
        let answer = (!self.messages.is_empty()).then(|| Message::new("assistant", completion));
        earlier.chain(answer).collect()
    }
}

/// The three parts of a dataset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Splits {
    /// What the model learns from.
    pub train: Vec<Example>,
    /// What choices are made on.
    pub valid: Vec<Example>,
    /// What is reported.
    pub test: Vec<Example>,
}

impl Splits {
    /// Puts three parts together and computes `seen_prompt` of every example.
    pub fn new(train: Vec<Example>, valid: Vec<Example>, test: Vec<Example>) -> Self {
        let mut splits = Self { train, valid, test };
        splits.mark_seen_prompts();
        splits
    }

    /// Computes `seen_prompt` of every example from the prompts of the training split.
    pub fn mark_seen_prompts(&mut self) {
        for example in &mut self.train {
            example.seen_prompt = true;
        }
        let seen: HashSet<&str> = self.train.iter().map(|e| e.prompt.as_str()).collect();
        for example in self.valid.iter_mut().chain(&mut self.test) {
            example.seen_prompt = seen.contains(example.prompt.as_str());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Example, Label, Splits};

    fn example(prompt: &str, seen_prompt: bool) -> Example {
        Example {
            id: prompt.into(),
            prompt: prompt.into(),
            completion: "yes".into(),
            label: Label::Positive,
            seen_prompt,
            messages: Vec::new(),
        }
    }

    #[test]
    fn seen_prompts_are_those_of_the_training_split() {
        let splits = Splits::new(
            vec![example("a", false)],
            vec![example("a", false), example("b", true)],
            vec![example("A", true)],
        );
        assert!(splits.train[0].seen_prompt);
        assert!(splits.valid[0].seen_prompt);
        assert!(!splits.valid[1].seen_prompt);
        assert!(!splits.test[0].seen_prompt);
    }

    #[test]
    fn labels_are_snake_case() {
        let text = serde_json::to_string(&Label::Unlabelled).unwrap();
        assert_eq!(text, "\"unlabelled\"");
    }
}
