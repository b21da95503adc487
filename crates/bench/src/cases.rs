//! What is compared, by name.

use std::collections::BTreeMap;

use unsay_model::Size;

use crate::protocol::Task;

/// A model by its shape; its weights are drawn from a seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Model {
    /// 6.84 million weights, most of them in the blocks.
    Small,
    /// The shape of SmolLM2-135M.
    Smollm2,
}

impl Model {
    /// The name of its folder.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Small => "llama-6.84m",
            Self::Smollm2 => "smollm2-135m-shape",
        }
    }

    /// Widths, blocks and heads.
    pub(crate) fn size(self) -> Size {
        let [
            hidden_size,
            intermediate_size,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
        ] = match self {
            Self::Small => [256, 688, 6, 8, 8],
            Self::Smollm2 => [576, 1536, 30, 9, 3],
        };
        Size {
            hidden_size,
            intermediate_size,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
        }
    }

    /// Rows of the embedding.
    pub(crate) fn vocab(self) -> usize {
        match self {
            Self::Small => 8192,
            Self::Smollm2 => 49152,
        }
    }
}

/// One worker of a case: whose it is and how it works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Side {
    /// Whether it is ours.
    pub(crate) ours: bool,
    /// How it works: words joined by `+`.
    ///
    /// Precision: `fp32`; `bf16`, ours with masters in f32, theirs with nothing but bf16; `autocast`, theirs with weights in f32
    /// and `torch.autocast`. Of DPO: `precomputed`, the reference's log-probs were made before the first step;
    /// `completion_logits`, TRL makes logits of completions alone, as we always do.
    pub(crate) way: String,
}

/// A ratio that is reported: their seconds for one of ours.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Comparison {
    /// Our way.
    pub(crate) ours: String,
    /// Their way.
    pub(crate) theirs: String,
    /// The ratio that is wanted at least.
    pub(crate) goal: Option<f64>,
}

/// The same work for several workers, which take turns.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Case {
    /// Its name on the command line and in results.
    pub(crate) name: String,
    /// What is done.
    pub(crate) task: Task,
    /// The model.
    pub(crate) model: Model,
    /// Examples or pairs per step, or prompts at a time.
    pub(crate) batch: usize,
    /// Prompts in all; of training none.
    pub(crate) prompts: usize,
    /// Tokens of a prompt.
    pub(crate) prompt: usize,
    /// Tokens of a completion; of sampling the most.
    pub(crate) completion: usize,
    /// Whether examples have from half to one and a half times as many tokens, of prompt and completion alike.
    pub(crate) spread: bool,
    /// Who takes part.
    pub(crate) sides: Vec<Side>,
    /// What is reported.
    pub(crate) comparisons: Vec<Comparison>,
    /// Steps or generations in a turn.
    pub(crate) steps: usize,
    /// Turns of each worker.
    pub(crate) rounds: usize,
}

impl Case {
    /// What is compared, in a few words.
    pub(crate) fn about(&self) -> String {
        let what = match self.task {
            Task::Sft => "SFT step",
            Task::Cringe => "CRINGE step",
            Task::Dpo => "DPO step",
            Task::Reward => "reward-model step",
            Task::Greedy => "greedy generation",
            Task::Sample => "sampling, ends spread",
        };
        let model = match self.model {
            Model::Small => "6.84M",
            Model::Smollm2 => "SmolLM2-135M shape",
        };
        let (batch, prompt, completion) = (self.batch, self.prompt, self.completion);
        match self.task {
            Task::Sft | Task::Cringe if self.spread => {
                let n = prompt + completion;
                format!("{what}, {model}, {batch} × {} to {}", n / 2, n + n / 2)
            }
            Task::Sft | Task::Cringe => format!("{what}, {model}, {batch} × {}", prompt + completion),
            Task::Dpo | Task::Reward => format!("{what}, {model}, {batch} pairs of {prompt} + 2 × {completion}"),
            Task::Greedy => format!("{what}, {model}, batch {batch}, {prompt} + {completion}"),
            Task::Sample => {
                let prompts = self.prompts;
                format!("{what}, {model}, batch {batch}, {prompts} prompts of {prompt}, up to {completion} new")
            }
        }
    }

    /// The numbers of the task.
    pub(crate) fn numbers(&self) -> BTreeMap<String, f64> {
        let mut numbers = BTreeMap::new();
        let mut put = |name: &str, value: f64| numbers.insert(name.to_owned(), value);
        match self.task {
            Task::Sft | Task::Reward => drop(put("lr", 1e-4)),
            Task::Cringe => {
                put("lr", 1e-4);
                put("alpha", 1.0);
                put("k", 5.0);
            }
            Task::Dpo => {
                put("lr", 1e-5);
                put("beta", 0.1);
            }
            Task::Greedy | Task::Sample => drop(put("new_tokens", self.completion as f64)),
        }
        numbers
    }
}

/// Batch and length of the three sizes of a training case, with steps and rounds.
fn sizes(task: Task) -> [(&'static str, Model, usize, usize, usize, usize); 3] {
    // A step on pairs takes longer, and more workers take part.
    match matches!(task, Task::Dpo | Task::Reward) {
        true => [
            ("64", Model::Small, 8, 64, 2, 10),
            ("256", Model::Small, 4, 256, 1, 10),
            ("smollm2", Model::Smollm2, 4, 64, 1, 6),
        ],
        false => [
            ("64", Model::Small, 16, 64, 3, 12),
            ("256", Model::Small, 8, 256, 2, 10),
            ("smollm2", Model::Smollm2, 8, 64, 1, 6),
        ],
    }
}

fn training(task: Task, name: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    for (size, model, batch, length, steps, rounds) in sizes(task) {
        for narrow in [false, true] {
            let (ours, theirs) = if narrow { ("bf16", "autocast") } else { ("fp32", "fp32") };
            let goal = match (task, narrow) {
                (Task::Sft | Task::Cringe, false) => Some(1.3),
                (Task::Sft | Task::Cringe, true) => Some(1.5),
                (Task::Dpo, _) => Some(2.0),
                (Task::Reward, _) => Some(1.0),
                _ => None,
            };
            let mut ways = vec![(ours.to_owned(), theirs.to_owned(), goal)];
            if task == Task::Dpo {
                // As either does by itself; as fast as TRL's settings make it; with the reference in every step.
                let (made, best) = ("+precomputed", "+precomputed+completion_logits");
                ways = vec![
                    (format!("{ours}{made}"), theirs.to_owned(), goal),
                    (format!("{ours}{made}"), format!("{theirs}{best}"), goal),
                ];
                // Four workers of a larger model would want 20 GB.
                if model == Model::Small {
                    ways.push((ours.to_owned(), theirs.to_owned(), goal));
                }
            } else if narrow {
                ways.push((ours.to_owned(), "bf16".to_owned(), None));
            }
            let half = length / 2;
            cases.push(Case {
                name: format!("{name}_{size}_{}", if narrow { "bf16" } else { "fp32" }),
                task,
                model,
                batch,
                prompts: 0,
                prompt: half,
                completion: half,
                spread: false,
                sides: sides(&ways),
                comparisons: ways.into_iter().map(comparison).collect(),
                steps,
                rounds,
            });
        }
    }
    cases
}

fn comparison((ours, theirs, goal): (String, String, Option<f64>)) -> Comparison {
    Comparison { ours, theirs, goal }
}

/// Everyone who is named, once; ours first.
fn sides(ways: &[(String, String, Option<f64>)]) -> Vec<Side> {
    let ours = ways.iter().map(|(way, _, _)| (true, way));
    let theirs = ways.iter().map(|(_, way, _)| (false, way));
    let mut sides: Vec<Side> = Vec::new();
    for (ours, way) in ours.chain(theirs) {
        let side = Side { ours, way: way.clone() };
        if !sides.contains(&side) {
            sides.push(side);
        }
    }
    sides
}

fn generation() -> Vec<Case> {
    let one = |name: &str, task, model, (batch, prompts), narrow: bool, goal, rounds| {
        let way = if narrow { "bf16" } else { "fp32" };
        let ways = [(way.to_owned(), way.to_owned(), goal)];
        Case {
            name: format!("{name}_{way}"),
            task,
            model,
            batch,
            prompts,
            prompt: 32,
            completion: 64,
            spread: false,
            sides: sides(&ways),
            comparisons: ways.map(comparison).into(),
            // One row takes a twentieth of a second, so that a moment's disturbance would be most of a turn.
            steps: if batch == 1 { 10 } else { 1 },
            rounds,
        }
    };
    vec![
        one("generate_1", Task::Greedy, Model::Small, (1, 1), false, Some(3.0), 20),
        one("generate_1", Task::Greedy, Model::Small, (1, 1), true, Some(3.0), 20),
        one(
            "generate_32",
            Task::Greedy,
            Model::Small,
            (32, 32),
            false,
            Some(5.0),
            12,
        ),
        one("generate_32", Task::Greedy, Model::Small, (32, 32), true, Some(5.0), 12),
        one("generate_smollm2", Task::Greedy, Model::Smollm2, (8, 8), false, None, 5),
        one(
            "generate_smollm2",
            Task::Greedy,
            Model::Smollm2,
            (8, 8),
            true,
            Some(2.0),
            6,
        ),
        one("sample_32", Task::Sample, Model::Small, (32, 128), false, None, 6),
    ]
}

/// All cases, in the order of the table.
pub(crate) fn all() -> Vec<Case> {
    let mut cases = training(Task::Sft, "sft");
    let spread = |case: &Case| Case {
        name: case.name.replace("_64_", "_spread_"),
        spread: true,
        ..case.clone()
    };
    let as_in_data: Vec<Case> = cases
        .iter()
        .filter(|case| case.name.contains("_64_"))
        .map(spread)
        .collect();
    cases.extend(as_in_data);
    cases.extend(training(Task::Cringe, "cringe"));
    cases.extend(training(Task::Dpo, "dpo"));
    cases.extend(training(Task::Reward, "reward"));
    cases.extend(generation());
    cases
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_every_comparison_has_its_sides() {
        let cases = all();
        let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
        assert_eq!((cases.len(), names.len()), (33, 33));
        let mut n = 0;
        for case in &cases {
            for Comparison { ours, theirs, .. } in &case.comparisons {
                let has = |ours: bool, way: &str| case.sides.iter().any(|side| side.ours == ours && side.way == way);
                assert!(has(true, ours) && has(false, theirs), "{}", case.name);
                n += 1;
            }
        }
        assert_eq!(n, 53);
    }

    #[test]
    fn the_small_model_has_the_weights_that_its_name_says() {
        let Size {
            hidden_size: d,
            intermediate_size: ff,
            num_hidden_layers: blocks,
            ..
        } = Model::Small.size();
        let weights = Model::Small.vocab() * d + blocks * (4 * d * d + 3 * d * ff + 2 * d) + d;
        assert_eq!(weights, 6_843_648);
    }
}
