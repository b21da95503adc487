//! The judge's word on each rollout.

use serde::{Deserialize, Serialize};
use unsay_data::{Example, Label, Message};
use unsay_reward::{Item, Judge, judge_all};

use crate::error::{Error, Result};
use crate::rollout::Rollout;

/// A completion of the model's own, with what a judge says of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Names it: `<id of the prompt's example>/<sample>`.
    pub id: String,
    /// The prompt.
    pub prompt: String,
    /// What the model said.
    pub completion: String,
    /// Copied from the prompt's example.
    pub seen_prompt: bool,
    /// The conversation with its roles, the completion as its last message; empty when the data has no roles.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<Message>,
    /// The verdict; unlabelled when the judge finds no reply to judge.
    pub label: Label,
}

impl Candidate {
    /// Whether there is nothing but white space in the completion.
    pub fn is_empty(&self) -> bool {
        self.completion.trim().is_empty()
    }

    /// As training data.
    pub(crate) fn example(&self) -> Example {
        Example {
            id: self.id.clone(),
            prompt: self.prompt.clone(),
            completion: self.completion.clone(),
            label: self.label,
            seen_prompt: self.seen_prompt,
            messages: self.messages.clone(),
        }
    }
}

/// Labels rollouts: positive when the judge's probability is above `threshold`, else negative; unlabelled
/// when the judge calls the completion malformed, blank ones included.
///
/// `prompts` are the examples that [`crate::rollout`] was given. An error when `rollouts` name others, when
/// `threshold` is not in [0, 1], or from the judge.
pub fn label(judge: &dyn Judge, prompts: &[Example], rollouts: &[Rollout], threshold: f64) -> Result<Vec<Candidate>> {
    if !(0.0..=1.0).contains(&threshold) {
        return Err(Error::Range {
            name: "threshold",
            expected: "in [0, 1]",
            got: threshold.to_string(),
        });
    }
    let mut candidates = Vec::with_capacity(rollouts.len());
    for rollout in rollouts {
        let no_such = || Error::NoSuchPrompt {
            prompt: rollout.prompt,
            n_prompts: prompts.len(),
        };
        let from = prompts.get(rollout.prompt).ok_or_else(no_such)?;
        candidates.push(Candidate {
            id: format!("{}/{}", from.id, rollout.sample),
            prompt: from.prompt.clone(),
            completion: rollout.completion.clone(),
            seen_prompt: from.seen_prompt,
            messages: from.messages_with(&rollout.completion),
            label: Label::Unlabelled,
        });
    }
    let spoken: Vec<usize> = (0..candidates.len()).filter(|i| !candidates[*i].is_empty()).collect();
    if spoken.is_empty() {
        return Ok(candidates);
    }
    let items: Vec<Item<'_>> = spoken
        .iter()
        .map(|i| Item {
            prompt: &candidates[*i].prompt,
            completion: &candidates[*i].completion,
        })
        .collect();
    let judgements = judge_all(judge, &items)?;
    for (i, judgement) in spoken.into_iter().zip(judgements) {
        candidates[i].label = judgement.label(threshold);
    }
    Ok(candidates)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes `yes` for good, `hm` for no reply, all else for bad.
    struct Yes;

    impl Judge for Yes {
        fn name(&self) -> &str {
            "yes"
        }
        fn safe(&self, items: &[Item<'_>]) -> unsay_reward::Result<Vec<f64>> {
            assert!(
                items.iter().all(|i| !i.completion.trim().is_empty()),
                "blank completions are not judged"
            );
            Ok(items
                .iter()
                .map(|i| if i.completion == "yes" { 0.9 } else { 0.1 })
                .collect())
        }
        fn malformed(&self, items: &[Item<'_>]) -> unsay_reward::Result<Vec<bool>> {
            Ok(items.iter().map(|i| i.completion == "hm").collect())
        }
    }

    fn rollout(prompt: usize, sample: usize, completion: &str) -> Rollout {
        Rollout {
            prompt,
            sample,
            completion: completion.into(),
            ids: vec![],
            logps: vec![],
            finished: true,
        }
    }

    #[test]
    fn verdicts_become_labels() {
        let conversation = vec![Message::new("user", "p1"), Message::new("assistant", "gold")];
        let prompts: Vec<Example> = (0..2)
            .map(|i| Example {
                id: format!("e{i}"),
                prompt: format!("p{i}"),
                completion: "gold".into(),
                label: Label::Negative,
                seen_prompt: i == 0,
                messages: if i == 0 { Vec::new() } else { conversation.clone() },
            })
            .collect();
        let rollouts = [
            rollout(0, 0, "yes"),
            rollout(0, 1, " "),
            rollout(1, 0, "no"),
            rollout(1, 1, "hm"),
        ];
        let got = label(&Yes, &prompts, &rollouts, 0.5).unwrap();
        let labels: Vec<Label> = got.iter().map(|c| c.label).collect();
        assert_eq!(
            labels,
            [Label::Positive, Label::Unlabelled, Label::Negative, Label::Unlabelled]
        );
        assert_eq!(
            (got[2].id.as_str(), got[2].prompt.as_str(), got[2].seen_prompt),
            ("e1/0", "p1", false)
        );
        assert!(got[0].messages.is_empty());
        let answered = [Message::new("user", "p1"), Message::new("assistant", "no")];
        assert_eq!(got[2].example().messages, answered);
        let error = label(&Yes, &prompts, &[rollout(5, 0, "yes")], 0.5).unwrap_err();
        assert_eq!(error.to_string(), "rollout of prompt 5, but only 2 prompts were given");
        assert!(label(&Yes, &prompts, &[rollout(0, 0, "")], 0.5).is_ok());
    }
}
