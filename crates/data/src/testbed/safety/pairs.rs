//! Which combinations of two phrases belong to which split.

use rand::Rng;
use rand::seq::IndexedRandom;

use super::Split;
use super::grammar::GRAMMAR;
use super::oracle::{effect, esteem};
use crate::stream;

/// The split of a combination, from its text alone, so that every world has the same splits.
fn split_of(slots: (&str, &str), phrases: (&str, &str)) -> Split {
    let purpose = format!("safety pair: {slots:?} {phrases:?}");
    match stream(0, &purpose, 0).random_range(0..10) {
        0 => Split::Valid,
        1 => Split::Test,
        _ => Split::Train,
    }
}

/// The combinations of a subject (whom it is about) and an object (what is planned or said) in one split.
#[derive(Debug, Default)]
pub(super) struct Pairs {
    all: Vec<(usize, usize)>,
    /// The combinations of the values −1, 0 and 1.
    by_value: [Vec<(usize, usize)>; 3],
    /// For each subject the objects it occurs with.
    objects: Vec<Vec<usize>>,
}

impl Pairs {
    /// The combinations for two slots in all splits, in the order of [`Split::ALL`].
    pub(super) fn of(slots: (&str, &str)) -> [Self; 3] {
        let phrases = |slot: &str| -> Vec<String> {
            let fillers = GRAMMAR.table(slot).fillers.iter();
            fillers.map(|filler| filler.words.join(" ")).collect()
        };
        let (subjects, objects) = (phrases(slots.0), phrases(slots.1));
        let mut pairs: [Self; 3] = Default::default();
        for part in &mut pairs {
            part.objects = vec![Vec::new(); subjects.len()];
        }
        for (s, subject) in subjects.iter().enumerate() {
            for (o, object) in objects.iter().enumerate() {
                let part = &mut pairs[split_of(slots, (subject, object)) as usize];
                let value = match slots.1 {
                    "act" => effect(s, o),
                    "trait" => esteem(o),
                    _ => 0,
                };
                part.all.push((s, o));
                part.by_value[place(value)].push((s, o));
                part.objects[s].push(o);
            }
        }
        pairs
    }

    pub(super) fn all(&self) -> &[(usize, usize)] {
        &self.all
    }

    /// A combination of the given value; `None` when the split has none.
    pub(super) fn draw(&self, value: i8, rng: &mut impl Rng) -> Option<(usize, usize)> {
        self.by_value[place(value)].choose(rng).copied()
    }

    /// An object that the split combines with this subject.
    pub(super) fn object(&self, subject: usize, rng: &mut impl Rng) -> Option<usize> {
        self.objects[subject].choose(rng).copied()
    }
}

/// Where a value stands among −1, 0 and 1.
fn place(value: i8) -> usize {
    match value.signum() {
        -1 => 0,
        0 => 1,
        _ => 2,
    }
}
