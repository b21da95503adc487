//! Draws contexts and replies: propose both by the grammar, keep what the oracle judges as wanted.

use std::collections::HashSet;

use rand::Rng;
use rand::seq::IndexedRandom;

use super::Split;
use super::grammar::{GRAMMAR, Sentence, Values};
use super::oracle::harms;
use super::pairs::Pairs;
use super::templates::{CONTEXTS, Claim, Family, Object, REPLIES};
use crate::{Example, Label, stream};

/// The longest reply that is written, in words. The oracle reads longer ones.
const MAX_REPLY: usize = 16;
/// Share of sensitive contexts about a plan; the others are about a remark.
const ADVICE: f64 = 0.65;
/// Share of plans that neither help nor harm among the contexts that are proposed.
const HARMLESS: f64 = 0.05;
/// Share of harmful activities and insulting traits among the others that are proposed. The worse is the more
/// frequent, as in life, and a learner finds the parts of the rule one after the other: at one half, label and
/// stance, and label and value, would be independent, as in a parity.
const BAD: f64 = 0.70;
/// Share of safe replies that take no stance.
const DEFLECTIONS: f64 = 0.08;
/// Share of unsafe replies to the sensitive contexts of the pretraining text.
const UNSAFE_IN_PRETRAINING: f64 = 0.4;

/// The safety world under one seed. Worlds of different seeds draw different examples from the same splits.
#[derive(Debug)]
pub struct World {
    seed: u64,
    /// For each line of `CONTEXTS` the combinations of its pair, by split.
    pairs: Vec<[Pairs; 3]>,
}

/// A context with its reading.
struct Opened {
    text: String,
    sentence: Sentence,
}

impl World {
    /// The world whose draws start from this seed.
    pub fn new(seed: u64) -> Self {
        let pairs = CONTEXTS.iter().map(|context| Pairs::of(context.pair));
        Self {
            seed,
            pairs: pairs.collect(),
        }
    }

    /// Replies to sensitive contexts, about half of them safe (positive). A prefix of a longer call is the same.
    pub fn labelled(&self, split: Split, n: usize) -> Vec<Example> {
        self.examples(split.name(), split, n, |rng| {
            let safe = rng.random_bool(0.5);
            let label = if safe { Label::Positive } else { Label::Negative };
            let (prompt, reply) = self.sensitive(split, safe, rng);
            (prompt, reply, label)
        })
    }

    /// `n` sensitive contexts, each with a safe (positive) and then an unsafe (negative) reply: 2n examples, in pairs. A
    /// prefix of a longer call is the same.
    pub fn pairs(&self, split: Split, n: usize) -> Vec<Example> {
        let purpose = format!("safety pairs-{}", split.name());
        let pair = |position: usize| {
            let (prompt, replies) = self.both_replies(split, &mut stream(self.seed, &purpose, position as u64));
            let sides = [("chosen", Label::Positive), ("rejected", Label::Negative)];
            replies
                .into_iter()
                .zip(sides)
                .map(move |(completion, (side, label))| Example {
                    id: format!("safety-pairs-{}-{position:06}:{side}", split.name()),
                    prompt: prompt.clone(),
                    completion,
                    label,
                    seen_prompt: split == Split::Train,
                    messages: Vec::new(),
                })
        };
        (0..n).flat_map(pair).collect()
    }

    /// Small talk, in which nothing can be unsafe.
    pub fn dialogue(&self, split: Split, n: usize) -> Vec<Example> {
        let name = format!("dialogue-{}", split.name());
        self.examples(&name, split, n, |rng| {
            let (prompt, reply) = self.benign(split, rng);
            (prompt, reply, Label::Unlabelled)
        })
    }

    /// What people write when nobody filters: half small talk, half replies to sensitive contexts of which 40 %
    /// are unsafe. All combinations are those of training.
    pub fn pretraining(&self, n: usize) -> Vec<Example> {
        let split = Split::Train;
        self.examples("pretraining", split, n, |rng| {
            let (prompt, reply) = if rng.random_bool(0.5) {
                self.benign(split, rng)
            } else {
                let safe = !rng.random_bool(UNSAFE_IN_PRETRAINING);
                self.sensitive(split, safe, rng)
            };
            (prompt, reply, Label::Unlabelled)
        })
    }

    /// Distinct sensitive contexts, each of which has unsafe replies, with one safe reply that takes a stance.
    ///
    /// Returns fewer than `n` only when the split is nearly exhausted (validation and test have over ten thousand).
    pub fn prompts(&self, split: Split, n: usize) -> Vec<Example> {
        let mut seen = HashSet::new();
        let mut prompts = Vec::with_capacity(n);
        let purpose = format!("safety prompts {}", split.name());
        for position in 0..20 * n as u64 {
            if prompts.len() == n {
                break;
            }
            let mut rng = stream(self.seed, &purpose, position);
            let Some(context) = self.open(split, 0.0, pick_family(&mut rng), &mut rng) else {
                continue;
            };
            if seen.contains(&context.text) {
                continue;
            }
            let reply = (0..1000).find_map(|_| {
                let line = pick_line(CONTEXTS[context.sentence.line].family, &mut rng)?;
                self.answer(split, &context, line, &mut rng)
                    .filter(|(reply, _)| !harms(&context.sentence, reply))
            });
            let Some((_, completion)) = reply else { continue };
            seen.insert(context.text.clone());
            prompts.push(Example {
                id: format!("safety-prompt-{}-{:06}", split.name(), prompts.len()),
                prompt: context.text,
                completion,
                label: Label::Positive,
                seen_prompt: split == Split::Train,
                messages: Vec::new(),
            });
        }
        prompts
    }

    fn examples(
        &self,
        name: &str,
        split: Split,
        n: usize,
        mut draw: impl FnMut(&mut rand_chacha::ChaCha8Rng) -> (String, String, Label),
    ) -> Vec<Example> {
        let purpose = format!("safety {name}");
        let example = |position: usize| {
            let mut rng = stream(self.seed, &purpose, position as u64);
            let (prompt, completion, label) = draw(&mut rng);
            Example {
                id: format!("safety-{name}-{position:06}"),
                prompt,
                completion,
                label,
                // A prompt belongs to one combination and a combination to one split.
                seen_prompt: split == Split::Train,
                messages: Vec::new(),
            }
        };
        (0..n).map(example).collect()
    }

    /// A sensitive context and a reply to it that is safe or not, as wanted.
    ///
    /// The kind of reply is fixed before anything depends on the label, so that it tells nothing of the label.
    fn sensitive(&self, split: Split, safe: bool, rng: &mut impl Rng) -> (String, String) {
        let family = pick_family(rng);
        let deflects = safe && rng.random_bool(DEFLECTIONS);
        let kind = if deflects { Family::Deflection } else { family };
        let line = pick_line(kind, rng);
        loop {
            let context = self.open(split, HARMLESS, family, rng);
            let answered = context.zip(line).and_then(|(context, line)| {
                let (reply, text) = self.answer(split, &context, line, rng)?;
                (harms(&context.sentence, &reply) != safe).then_some((context.text, text))
            });
            if let Some(found) = answered {
                return found;
            }
        }
    }

    /// A sensitive context with a safe and an unsafe reply, each drawn as [`World::labelled`] draws its own.
    fn both_replies(&self, split: Split, rng: &mut impl Rng) -> (String, [String; 2]) {
        let family = pick_family(rng);
        let deflects = rng.random_bool(DEFLECTIONS);
        let lines = [
            pick_line(if deflects { Family::Deflection } else { family }, rng),
            pick_line(family, rng),
        ];
        loop {
            let found = self.open(split, HARMLESS, family, rng).and_then(|context| {
                let mut reply = |line: Option<usize>, safe: bool| {
                    let (reply, text) = self.answer(split, &context, line?, rng)?;
                    (harms(&context.sentence, &reply) != safe).then_some(text)
                };
                let replies = [reply(lines[0], true)?, reply(lines[1], false)?];
                Some((context.text.clone(), replies))
            });
            if let Some(found) = found {
                return found;
            }
        }
    }

    fn benign(&self, split: Split, rng: &mut impl Rng) -> (String, String) {
        let lines = lines_of(|family| matches!(family, Family::Benign(_)));
        loop {
            if let Some(found) = self.small_talk(split, &lines, rng) {
                return found;
            }
        }
    }

    fn small_talk(&self, split: Split, lines: &[usize], rng: &mut impl Rng) -> Option<(String, String)> {
        let line = *lines.choose(rng)?;
        let pair = *self.pairs[line][split as usize].all().choose(rng)?;
        let context = write_context(line, pair, rng)?;
        let rule = &GRAMMAR.replies[pick_line(CONTEXTS[line].family, rng)?][0];
        let (_, reply) = GRAMMAR.write(rule, &context.sentence.values, rng)?;
        Some((context.text, reply))
    }

    /// A sensitive context; `harmless` is the share of plans without effect.
    fn open(&self, split: Split, harmless: f64, family: Family, rng: &mut impl Rng) -> Option<Opened> {
        let line = *lines_of(|other| other == family).choose(rng)?;
        let no_effect = family == Family::Advice && rng.random_bool(harmless);
        let value = match (no_effect, rng.random_bool(BAD)) {
            (true, _) => 0,
            (false, true) => -1,
            (false, false) => 1,
        };
        let pair = self.pairs[line][split as usize].draw(value, rng)?;
        write_context(line, pair, rng)
    }

    /// A reply of the given line that fits the context, of at most [`MAX_REPLY`] words.
    fn answer(&self, split: Split, context: &Opened, line: usize, rng: &mut impl Rng) -> Option<(Sentence, String)> {
        let (subject, object) = CONTEXTS[context.sentence.line].pair;
        let subject = context.sentence.values.get(subject)?;
        let same = context.sentence.values.get(object)?;
        let pairs = &self.pairs[context.sentence.line][split as usize];
        let mut values = context.sentence.values.clone().without(&["are", object]);
        match REPLIES[line].claim {
            Some(Claim::For(Object::Slot(slot)) | Claim::Agreed(Object::Slot(slot))) => {
                let named = if rng.random_bool(0.9) {
                    same
                } else {
                    pairs.object(subject, rng)?
                };
                values.set(slot, named);
            }
            Some(Claim::Prefer(Object::Slot(first), Object::Slot(second))) => {
                let other = pairs.object(subject, rng).filter(|other| *other != same)?;
                let (same_slot, other_slot) = if rng.random_bool(0.5) {
                    (first, second)
                } else {
                    (second, first)
                };
                values.set(same_slot, same);
                values.set(other_slot, other);
            }
            _ => {}
        }
        // Most replies are bare; the others have an opener, a tail or both.
        let form = [0, 0, 0, 0, 0, 0, 1, 2, 3].choose(rng).copied()?;
        let rules = &GRAMMAR.replies[line];
        let rule = rules.get(form).or(rules.first())?;
        let short = |text: &str| text.split(' ').count() <= MAX_REPLY;
        GRAMMAR.write(rule, &values, rng).filter(|(_, text)| short(text))
    }
}

fn write_context(line: usize, pair: (usize, usize), rng: &mut impl Rng) -> Option<Opened> {
    let mut values = Values::default();
    values.set(CONTEXTS[line].pair.0, pair.0);
    values.set(CONTEXTS[line].pair.1, pair.1);
    let (sentence, text) = GRAMMAR.write(&GRAMMAR.contexts[line], &values, rng)?;
    Some(Opened { text, sentence })
}

fn pick_family(rng: &mut impl Rng) -> Family {
    if rng.random_bool(ADVICE) {
        Family::Advice
    } else {
        Family::Opinion
    }
}

fn lines_of(fits: impl Fn(Family) -> bool) -> Vec<usize> {
    let lines = CONTEXTS.iter().enumerate();
    let fitting = lines.filter(|(_, context)| fits(context.family));
    fitting.map(|(line, _)| line).collect()
}

/// The number of a line of `REPLIES`, drawn by weight.
fn pick_line(family: Family, rng: &mut impl Rng) -> Option<usize> {
    let lines = REPLIES.iter().enumerate();
    let fitting: Vec<_> = lines.filter(|(_, r)| r.family == family).collect();
    let drawn = fitting.choose_weighted(rng, |(_, r)| r.weight).ok()?;
    Some(drawn.0)
}
