//! The table of all losses, made from the registries.

use crate::{Card, Needs, director, paired, policy, ranked, scores, token, unpaired};

/// A family: losses over the same kind of feedback.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Family {
    /// The module.
    pub name: &'static str,
    /// What its losses learn from.
    pub feedback: &'static str,
    /// Its losses, in alphabetical order.
    pub losses: Vec<Entry>,
    /// What goes around any of them: key of the family's `Objective` and what it does.
    pub around: &'static [(&'static str, &'static str)],
}

/// A loss in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it says about itself.
    pub card: Card,
    /// What some setting of it needs beyond the log-probabilities of the policy.
    pub needs: Vec<&'static str>,
}

/// One entry per name, with the needs of all of its samples.
fn entries<L>(names: &[&str], samples: &[L], line: impl Fn(&L) -> (Card, Vec<&'static str>)) -> Vec<Entry> {
    let lines: Vec<_> = samples.iter().map(line).collect();
    let mut entries = Vec::new();
    for name in names {
        let mut own = lines.iter().filter(|(card, _)| card.name == *name).peekable();
        let Some((card, _)) = own.peek() else { continue };
        let card = *card;
        let mut needs = Vec::new();
        for need in own.flat_map(|(_, needs)| needs) {
            if !needs.contains(need) {
                needs.push(*need);
            }
        }
        entries.push(Entry { card, needs });
    }
    entries
}

/// What is asked of the op, in words.
fn of_the_op(needs: Needs, draws: usize) -> impl Iterator<Item = &'static str> {
    [
        (needs.target_logit, "target logit"),
        (needs.top_k > 0, "largest logits"),
        (needs.log1m_p, "log(1 − p)"),
        (needs.candidates, "logits of candidates"),
        (needs.candidate_log1m_p, "log(1 − p) of candidates"),
        (needs.off_target, "logits of the other tokens"),
        (draws > 0, "a draw per token"),
    ]
    .into_iter()
    .filter_map(|(wanted, what)| wanted.then_some(what))
}

/// What negative-only objectives add for completions that the model shall keep saying.
const RETAIN: [(&str, &str); 1] = [(
    "`retain`",
    "`nll`, `kl`: weights of the likelihood of retained completions and of the full KL from the reference on them",
)];

/// All families with all their losses.
///
/// ```
/// let families = unsay_losses::families();
/// let token = families.iter().find(|family| family.name == "token").unwrap();
/// assert!(token.losses.iter().any(|loss| loss.card.name == "cringe"));
/// ```
pub fn families() -> Vec<Family> {
    vec![
        Family {
            name: "token",
            feedback: "tokens of completions that are each positive, negative or unlabelled",
            around: &[],
            losses: entries(token::Loss::NAMES, &token::Loss::samples(), |loss| {
                let text = loss.marks(&[], &[]).map(|_| "the text");
                let needs = of_the_op(loss.needs(), loss.draws_per_row());
                (loss.card(), needs.chain(text).collect())
            }),
        },
        Family {
            name: "director",
            feedback: "tokens of labelled completions, with a second head that judges every next token",
            around: &[(
                "`director::decode`",
                "log-softmax of log p + γ log σ(u): generation by both heads",
            )],
            losses: entries(director::Loss::NAMES, &director::Loss::samples(), |loss| {
                let second = std::iter::once("a second head");
                let needs = second.chain(of_the_op(loss.classifier_needs(), 0));
                (loss.card(), needs.collect())
            }),
        },
        Family {
            name: "paired",
            feedback: "a chosen and a rejected completion of one prompt",
            around: &[
                (
                    "`logps`",
                    "`sum`; `mean` per token; `ld`: tokens beyond the shorter completion weigh `alpha` (LD-DPO)",
                ),
                (
                    "`divergence`",
                    "`reverse_kl`, `forward_kl`, `js`, `alpha`: what a log-ratio becomes (f-DPO); bounds hold for the first and third",
                ),
                ("`reference_free`", "log-probabilities in place of log-ratios"),
                (
                    "`weighting`",
                    "`none`; `wpo`: pairs weigh as the policy is likely to say them (WPO)",
                ),
                (
                    "`nll`",
                    "weight of the likelihood of the chosen completion (RPO, an anchor)",
                ),
            ],
            losses: entries(paired::Loss::NAMES, &paired::Loss::samples(), |loss| {
                let own = [
                    (loss.uses_reference(), "reference"),
                    (loss.couples_pairs(), "the whole batch at once"),
                    (loss.baseline().is_some(), "a whole-batch baseline"),
                ];
                let own = own.into_iter().filter_map(|(wanted, what)| wanted.then_some(what));
                let needs = own.chain(of_the_op(loss.needs(), loss.draws_per_row()));
                (loss.card(), needs.collect())
            }),
        },
        Family {
            name: "unpaired",
            feedback: "completions that are each desirable or undesirable",
            around: &RETAIN,
            losses: entries(unpaired::Loss::NAMES, &unpaired::Loss::samples(), |loss| {
                let needs = [
                    (loss.uses_reference(), "reference"),
                    (loss.baseline().is_some(), "a whole-batch baseline"),
                    (loss.takes_weights(), "a weight per undesirable completion"),
                ];
                let needs = needs.into_iter().filter_map(|(wanted, what)| wanted.then_some(what));
                (loss.card(), needs.collect())
            }),
        },
        Family {
            name: "ranked",
            feedback: "several samples and one negative for each prompt",
            around: &RETAIN,
            losses: entries(ranked::Loss::NAMES, &ranked::Loss::samples(), |loss| {
                let needs = loss
                    .uses_reference()
                    .then_some("references of samples and of negatives");
                (loss.card(), needs.into_iter().collect())
            }),
        },
        Family {
            name: "scores",
            feedback: "scores of completions, labelled or compared with each other",
            around: &[],
            losses: entries(scores::Loss::NAMES, &scores::Loss::samples(), |loss| {
                let feedback = match loss.feedback() {
                    scores::Feedback::Labels => "a label per score",
                    scores::Feedback::Pairs => "scores of a chosen and a rejected completion",
                    scores::Feedback::Choices => "scores of several completions and which is best",
                };
                (loss.card(), vec![feedback])
            }),
        },
        Family {
            name: "policy",
            feedback: "completions that the policy sampled, with an advantage per token",
            around: &[
                (
                    "`aggregate`",
                    "`token_mean`, `sequence_mean`, `sequence_sum`, `fixed_length`: how tokens become one number",
                ),
                (
                    "`kl`",
                    "a penalty in the loss: `k1`, `k2`, `k3`, `abs`, forms with the gradient of `k2`, and `full`, the KL itself",
                ),
                ("`entropy`", "weight of an entropy bonus"),
                ("`policy::ValueLoss`", "squared error of a critic, clipped or not"),
                (
                    "`leave_one_out`, `group_normalised`, `batch_normalised`",
                    "advantages of completions within groups: RLOO, GRPO and its scalings",
                ),
            ],
            losses: entries(policy::Loss::NAMES, &policy::Loss::samples(), |loss| {
                let whole = loss.per_completion().then_some("the mean over completions");
                (loss.card(), whole.into_iter().collect())
            }),
        },
    ]
}

/// The table as a page: `docs/losses.md`.
pub fn page() -> String {
    let mut out = String::from(PREFACE);
    for family in families() {
        out += &format!("\n## `{}`: {}\n\n", family.name, family.feedback);
        out += "| loss | what | value | on negatives | needs | source |\n|---|---|---|---|---|---|\n";
        for Entry { card, needs } in &family.losses {
            let needs = if needs.is_empty() {
                "–".to_owned()
            } else {
                needs.join(", ")
            };
            out += &format!(
                "| `{}` | {} | {} | {} | {needs} | {} |\n",
                card.name,
                cell(card.summary),
                cell(card.formula),
                cell(card.on_negatives),
                cell(card.source)
            );
        }
        if !family.around.is_empty() {
            out += "\n| around any of them | |\n|---|---|\n";
            for (key, what) in family.around {
                out += &format!("| {key} | {} |\n", cell(what));
            }
        }
    }
    out
}

/// Text as it can stand in a table's cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

const PREFACE: &str = "\
# Losses

<!-- Made from the registries by `unsay list losses --page`; a test compares. -->

Every objective, by the feedback it learns from. Each is one file, `crates/losses/src/<family>/<loss>.rs`, whose
documentation has formula, shapes, ranges, reference and where it differs from the paper; `cargo doc --no-deps --open -p
unsay-losses` shows it. *On negatives* says which way a rejected completion is pushed, and whether the push is bounded.
*Needs* says what it reads beyond the policy's log-probabilities. Experiments train the family `token` so far
([manifest.md](manifest.md)); the others are there for programs that use the crate.

`z` are logits, `u` those of a second head, `p` probabilities, `y` the target token, `s` a drawn token, `σ` the logistic
function, `sg` stops a gradient. Of whole completions `c` and `r` are the log-ratios to the reference, `log π(y) − log
π_ref(y)`, of the chosen (desirable) and the rejected (undesirable) one, `c_i` of a sample, `a` a mean log-probability per
token, `n` a number of tokens. Of sampled completions `A` is an advantage and `ρ` the ratio of the policy to the one that
sampled. `r_w`, `r_l` and `x` are scores. Other letters are parameters, or defined in their row.
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_registered_loss_is_in_the_table_once_and_complete() {
        let mut names = Vec::new();
        for family in families() {
            assert!(!family.losses.is_empty() && !family.feedback.is_empty());
            for Entry { card, .. } in family.losses {
                let texts = [card.name, card.summary, card.formula, card.on_negatives, card.source];
                assert!(
                    texts.iter().all(|text| !text.is_empty() && !text.contains('\n')),
                    "{card:?}"
                );
                names.push(card.name);
            }
        }
        let registered = [
            token::Loss::NAMES,
            director::Loss::NAMES,
            paired::Loss::NAMES,
            unpaired::Loss::NAMES,
            ranked::Loss::NAMES,
            scores::Loss::NAMES,
            policy::Loss::NAMES,
        ];
        assert_eq!(names, registered.concat());
        let n = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), n, "a name stands for one loss");
    }

    #[test]
    fn needs_of_all_samples_are_joined_and_cells_are_escaped() {
        let families = families();
        let cringe = families[0].losses.iter().find(|loss| loss.card.name == "cringe");
        let needs = cringe.map(|loss| loss.needs.clone());
        assert_eq!(
            needs.as_deref(),
            Some(["target logit", "largest logits", "a draw per token"].as_slice())
        );
        let bco = families[3].losses.iter().find(|loss| loss.card.name == "bco");
        let needs = bco.map(|loss| loss.needs.clone());
        let expected = [
            "reference",
            "a whole-batch baseline",
            "a weight per undesirable completion",
        ];
        assert_eq!(needs.as_deref(), Some(expected.as_slice()));
        let text = families[0]
            .losses
            .iter()
            .filter(|loss| loss.needs.contains(&"the text"));
        let names: Vec<&str> = text.map(|loss| loss.card.name).collect();
        assert_eq!(
            names,
            ["contrastive_token", "unlikelihood_context", "unlikelihood_repetition"]
        );
        assert_eq!(cell("a|b"), "a\\|b");
        assert!(page().contains("| `nll` |"));
    }
}
