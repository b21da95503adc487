//! Tests of the safety world, by what they hold it to.

mod balance;
mod grammar;
mod oracle;
mod splits;

use super::{Split, Verdict, World, verdict};
use crate::{Example, Label};

/// What the oracle says of an example.
fn judged(example: &Example) -> Verdict {
    verdict(&example.prompt, &example.completion)
}

fn words(text: &str) -> Vec<&str> {
    text.split(' ').collect()
}

/// Small talk and replies to sensitive contexts of all splits.
fn a_bit_of_everything(n: usize) -> Vec<Example> {
    let world = World::new(11);
    let of_split = |split| {
        let mut all = world.labelled(split, n);
        all.extend(world.dialogue(split, n));
        all
    };
    Split::ALL.into_iter().flat_map(of_split).collect()
}
