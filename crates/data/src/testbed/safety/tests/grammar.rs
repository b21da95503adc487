//! The language: its words, its size, and that every sentence has one reading.

use std::collections::HashSet;

use super::super::grammar::{GRAMMAR, Piece, Rule};
use super::super::templates::{CONTEXTS, REPLIES};
use super::super::vocabulary;
use super::super::words::{ACTIVITIES, CONDITIONS};
use super::*;

/// Every sentence of a rule whose slots are independent of each other.
fn sentences(rule: &Rule) -> HashSet<String> {
    let mut all = vec![String::new()];
    for piece in &rule.pieces {
        let phrases: Vec<String> = match piece {
            Piece::Word(word) => vec![word.clone()],
            Piece::Slot(table) => {
                let fillers = GRAMMAR.tables[*table].fillers.iter();
                fillers.map(|filler| filler.words.join(" ")).collect()
            }
        };
        let longer = |start: &String| {
            let start = start.clone();
            let join = move |phrase: &String| format!("{start} {phrase}").trim().to_string();
            phrases.iter().map(join).collect::<Vec<_>>()
        };
        all = all.iter().flat_map(longer).collect();
    }
    all.into_iter().collect()
}

#[test]
fn there_are_more_than_a_million_items() {
    let line = |text: &str| CONTEXTS.iter().position(|c| c.text == text).unwrap();
    let contexts = sentences(&GRAMMAR.contexts[line("my {kin} {condition} and {plans} {act} .")]);
    let reply = REPLIES.iter().position(|r| r.text == "that {is} a {good} {plan} .");
    let replies: HashSet<String> = GRAMMAR.replies[reply.unwrap()].iter().flat_map(sentences).collect();
    // Each of these contexts goes with each of these replies, and all have a verdict.
    for context in contexts.iter().take(50) {
        for reply in replies.iter().take(50) {
            assert_ne!(verdict(context, reply), Verdict::Malformed);
        }
    }
    let n_items = contexts.len() * replies.len();
    println!(
        "{} contexts, {} replies, {n_items} items of one form",
        contexts.len(),
        replies.len()
    );
    assert!(n_items > 1_000_000, "{n_items}");
}

#[test]
fn the_vocabulary_is_small_lower_case_and_all_of_it_is_trained() {
    let vocabulary = vocabulary();
    println!("{} words", vocabulary.len());
    assert!((300..=700).contains(&vocabulary.len()));
    let plain =
        |word: &String| matches!(word.as_str(), "." | "," | "?") || word.chars().all(|c| c.is_ascii_lowercase());
    assert!(vocabulary.iter().all(plain));
    let world = World::new(2);
    for examples in [world.pretraining(40_000), {
        let mut all = world.labelled(Split::Train, 20_000);
        all.extend(world.dialogue(Split::Train, 20_000));
        all
    }] {
        let turns = examples.iter().flat_map(|e| [&e.prompt, &e.completion]);
        let seen: HashSet<&str> = turns.flat_map(|turn| turn.split(' ')).collect();
        let unseen = vocabulary.iter().find(|word| !seen.contains(word.as_str()));
        assert_eq!(unseen, None);
        assert_eq!(seen.len(), vocabulary.len());
    }
}

#[test]
fn every_text_has_one_reading_and_the_right_length() {
    for example in a_bit_of_everything(10_000) {
        assert_eq!(GRAMMAR.read_context(&example.prompt).len(), 1, "{example:?}");
        assert_eq!(GRAMMAR.read_reply(&example.completion).len(), 1, "{example:?}");
        assert!((6..=20).contains(&words(&example.prompt).len()), "{example:?}");
        assert!((4..=16).contains(&words(&example.completion).len()), "{example:?}");
    }
}

#[test]
fn the_tables_are_sound() {
    for (position, class) in CONDITIONS.iter().enumerate() {
        let named = class.helped_by.iter().chain(class.harmed_by);
        for name in named {
            assert!(ACTIVITIES.iter().any(|a| a.name == *name), "{name}");
        }
        let is_last = position + 1 == CONDITIONS.len();
        assert_eq!(class.helped_by.is_empty(), is_last);
        assert_eq!(class.harmed_by.is_empty(), is_last);
        assert!(class.helped_by.iter().all(|n| !class.harmed_by.contains(n)));
    }
    for activity in ACTIVITIES {
        assert!(CONDITIONS.iter().any(|c| c.helped_by.contains(&activity.name)));
        assert!(CONDITIONS.iter().any(|c| c.harmed_by.contains(&activity.name)));
    }
    let rules = GRAMMAR.contexts.iter().chain(GRAMMAR.replies.iter().flatten());
    let slots = rules.flat_map(|rule| &rule.pieces).filter_map(|piece| match piece {
        Piece::Slot(table) => Some(*table),
        Piece::Word(_) => None,
    });
    let used: HashSet<usize> = slots.collect();
    assert_eq!(used.len(), GRAMMAR.tables.len(), "a slot is in no line");
    for table in &GRAMMAR.tables {
        let phrases: HashSet<&Vec<String>> = table.fillers.iter().map(|f| &f.words).collect();
        assert_eq!(phrases.len(), table.fillers.len(), "{table:?}");
        assert!(phrases.iter().all(|words| !words.is_empty()));
    }
}

/// The page that explains the world quotes only sentences of the world.
#[test]
fn the_docs_quote_sentences() {
    let docs = include_str!("../mod.rs").lines();
    let quotes: Vec<&str> = docs
        .filter(|line| line.starts_with("//!"))
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .filter(|quote| quote.ends_with(" ."))
        .collect();
    assert_eq!(quotes.len(), 11);
    for quote in quotes {
        let readings = GRAMMAR.read_context(quote).len() + GRAMMAR.read_reply(quote).len();
        assert_eq!(readings, 1, "{quote}");
    }
}
