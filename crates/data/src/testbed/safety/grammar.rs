//! One grammar for writing and for reading: a sentence is a rule whose slots are filled from tables.

use std::collections::HashMap;
use std::sync::LazyLock;

use rand::Rng;
use rand::seq::IndexedRandom;

use super::tables::{Filler, Table, Variable, tables};
use super::templates::{CONTEXTS, Family, REPLIES};

/// A part of a rule.
#[derive(Debug)]
pub(super) enum Piece {
    Word(String),
    /// The number of a table.
    Slot(usize),
}

/// The form of one kind of sentence.
#[derive(Debug)]
pub(super) struct Rule {
    /// The number of its line in `CONTEXTS` or `REPLIES`.
    pub(super) line: usize,
    pub(super) pieces: Vec<Piece>,
}

/// Which value each variable has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Values(Vec<(Variable, usize)>);

impl Values {
    pub(super) fn get(&self, variable: &str) -> Option<usize> {
        let found = self.0.iter().find(|(name, _)| *name == variable);
        found.map(|(_, value)| *value)
    }

    pub(super) fn set(&mut self, variable: Variable, value: usize) {
        match self.0.iter_mut().find(|(name, _)| *name == variable) {
            Some(entry) => entry.1 = value,
            None => self.0.push((variable, value)),
        }
    }

    /// These values without those of the variables named.
    pub(super) fn without(mut self, variables: &[&str]) -> Self {
        self.0.retain(|(name, _)| !variables.contains(name));
        self
    }

    fn allow(&self, filler: &Filler) -> bool {
        let agrees = |(variable, value): &(Variable, usize)| self.get(variable).is_none_or(|bound| bound == *value);
        filler.binds.iter().all(agrees)
    }

    fn bind(&mut self, filler: &Filler) {
        for (variable, value) in &filler.binds {
            self.set(variable, *value);
        }
    }
}

/// A sentence as the grammar sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sentence {
    /// The number of its line in `CONTEXTS` or `REPLIES`.
    pub(super) line: usize,
    pub(super) values: Values,
    /// The product of the signs of its phrases.
    pub(super) sign: i8,
}

impl Sentence {
    fn new(line: usize, values: Values) -> Self {
        Self { line, values, sign: 1 }
    }
}

/// The rules and tables of the world.
#[derive(Debug)]
pub(super) struct Grammar {
    names: HashMap<&'static str, usize>,
    pub(super) tables: Vec<Table>,
    pub(super) contexts: Vec<Rule>,
    /// For each line of `REPLIES` the bare rule and, except for small talk, those with opener, tail and both.
    pub(super) replies: Vec<Vec<Rule>>,
}

/// The grammar, built once from the lines of `templates.rs` and `words.rs`.
pub(super) static GRAMMAR: LazyLock<Grammar> = LazyLock::new(Grammar::build);

impl Grammar {
    fn build() -> Self {
        let (names, tables) = tables();
        let rule = |line: usize, text: &str| Rule {
            line,
            pieces: text.split(' ').map(|word| piece(word, &names)).collect(),
        };
        let contexts = CONTEXTS.iter().enumerate();
        let replies = REPLIES.iter().enumerate().map(|(line, reply)| {
            let mut rules = vec![rule(line, reply.text)];
            if let (Family::Advice | Family::Opinion | Family::Deflection, Some(core)) =
                (reply.family, reply.text.strip_suffix(" ."))
            {
                rules.push(rule(line, &format!("{{opener}} , {core} .")));
                rules.push(rule(line, &format!("{core} , {{tail}} .")));
                rules.push(rule(line, &format!("{{opener}} , {core} , {{tail}} .")));
            }
            rules
        });
        Self {
            contexts: contexts.map(|(line, c)| rule(line, c.text)).collect(),
            replies: replies.collect(),
            names,
            tables,
        }
    }

    /// The table of a slot.
    pub(super) fn table(&self, slot: &str) -> &Table {
        &self.tables[self.names[slot]]
    }

    /// Every reading of a text as a context. The grammar is unambiguous, so there is at most one.
    pub(super) fn read_context(&self, text: &str) -> Vec<Sentence> {
        let words: Vec<&str> = text.split(' ').collect();
        self.read(self.contexts.iter(), &words)
    }

    /// Every reading of a text as a reply. The grammar is unambiguous, so there is at most one.
    pub(super) fn read_reply(&self, text: &str) -> Vec<Sentence> {
        let words: Vec<&str> = text.split(' ').collect();
        self.read(self.replies.iter().flatten(), &words)
    }

    fn read<'a>(&self, rules: impl Iterator<Item = &'a Rule>, words: &[&str]) -> Vec<Sentence> {
        let mut found = Vec::new();
        for rule in rules {
            let start = Sentence::new(rule.line, Values::default());
            self.read_on(&rule.pieces, words, &start, &mut found);
        }
        found
    }

    /// Follows every way to read `words` as `pieces`, given what was read before.
    fn read_on(&self, pieces: &[Piece], words: &[&str], so_far: &Sentence, found: &mut Vec<Sentence>) {
        let Some((piece, later)) = pieces.split_first() else {
            if words.is_empty() {
                found.push(so_far.clone());
            }
            return;
        };
        match piece {
            Piece::Word(word) => {
                if words.first() == Some(&word.as_str()) {
                    self.read_on(later, &words[1..], so_far, found);
                }
            }
            Piece::Slot(table) => {
                for filler in self.tables[*table].starting(words) {
                    if so_far.values.allow(filler) {
                        let mut next = so_far.clone();
                        next.values.bind(filler);
                        next.sign *= filler.sign;
                        self.read_on(later, &words[filler.words.len()..], &next, found);
                    }
                }
            }
        }
    }

    /// Draws the phrases of a rule so that they agree with `values`; `None` when a slot has no such phrase.
    pub(super) fn write(&self, rule: &Rule, values: &Values, rng: &mut impl Rng) -> Option<(Sentence, String)> {
        let mut sentence = Sentence::new(rule.line, values.clone());
        let mut words: Vec<&str> = Vec::new();
        for piece in &rule.pieces {
            match piece {
                Piece::Word(word) => words.push(word),
                Piece::Slot(table) => {
                    let fillers = self.tables[*table].fillers.iter();
                    let fitting: Vec<&Filler> = fillers.filter(|f| sentence.values.allow(f)).collect();
                    let filler = fitting.choose_weighted(rng, |f| f.weight).ok()?;
                    sentence.values.bind(filler);
                    sentence.sign *= filler.sign;
                    words.extend(filler.words.iter().map(String::as_str));
                }
            }
        }
        Some((sentence, words.join(" ")))
    }
}

/// Every word of the world, sorted.
pub fn vocabulary() -> Vec<String> {
    let phrases = GRAMMAR.tables.iter().flat_map(|table| &table.fillers);
    let rules = GRAMMAR.contexts.iter().chain(GRAMMAR.replies.iter().flatten());
    let pieces = rules.flat_map(|rule| &rule.pieces);
    let fixed = pieces.filter_map(|piece| match piece {
        Piece::Word(word) => Some(word),
        Piece::Slot(_) => None,
    });
    let all = phrases.flat_map(|filler| &filler.words).chain(fixed);
    let mut words: Vec<String> = all.cloned().collect();
    words.sort();
    words.dedup();
    words
}

fn piece(word: &str, names: &HashMap<&str, usize>) -> Piece {
    match word.strip_prefix('{').and_then(|w| w.strip_suffix('}')) {
        Some(name) => Piece::Slot(names[name]),
        None => Piece::Word(word.to_string()),
    }
}
