//! Who listens to generation hears what comes out, changes nothing, and may end a completion.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::ops::ControlFlow;

use common::{config, decoder, random_ids};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::Kind;
use unsay_model::{Decoder, Generated, Generation, Listener, Sampling};

const EOS: u32 = 3;

#[derive(Default)]
struct Ear {
    heard: Vec<Vec<u32>>,
    done: Vec<usize>,
    /// Ends the completion of a prompt after so many tokens.
    enough: Option<(usize, usize)>,
}

impl Listener for Ear {
    fn token(&mut self, prompt: usize, token: u32) -> ControlFlow<()> {
        self.heard[prompt].push(token);
        match self.enough {
            Some((who, n)) if who == prompt && self.heard[prompt].len() == n => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }

    fn done(&mut self, prompts: usize) {
        self.done.push(prompts);
    }
}

fn uniform(prompt: usize, step: usize) -> f32 {
    ChaCha8Rng::seed_from_u64((prompt * 1000 + step) as u64).random()
}

fn model() -> Decoder {
    tch::set_num_threads(1);
    let config = unsay_model::Config {
        initializer_range: 0.2,
        ..config(6, 2, 4, 2)
    };
    decoder(&config, 11, Kind::Double)
}

fn heard(enough: Option<(usize, usize)>, batch: usize) -> (Vec<Generated>, Ear, Vec<Generated>) {
    let decoder = model();
    let prompts: Vec<Vec<u32>> = (0..5)
        .map(|i| {
            random_ids(2 + i as usize, 31, 100 + i)
                .into_iter()
                .map(|id| id as u32)
                .collect()
        })
        .collect();
    let sampling = Sampling::new(12);
    let mut ear = Ear {
        heard: vec![Vec::new(); prompts.len()],
        enough,
        ..Ear::default()
    };
    let request = Generation::new(&decoder, &sampling, &[EOS]).batch(batch);
    let told = request.draws(&mut uniform).listener(&mut ear).run(&prompts).unwrap();
    let request = Generation::new(&decoder, &sampling, &[EOS]).batch(batch);
    let alone = request.draws(&mut uniform).run(&prompts).unwrap();
    (told, ear, alone)
}

#[test]
fn a_listener_hears_every_token_and_changes_none() {
    for batch in [1, 2, 5] {
        let (told, ear, alone) = heard(None, batch);
        assert_eq!(told, alone);
        let ids: Vec<Vec<u32>> = told.into_iter().map(|one| one.ids).collect();
        assert_eq!(ear.heard, ids);
        assert!(ids.iter().map(Vec::len).sum::<usize>() > 20);
        assert_eq!(ear.done.last(), Some(&5));
    }
}

#[test]
fn a_listener_ends_one_completion_and_no_other() {
    let (told, _, alone) = heard(Some((2, 3)), 5);
    assert!(alone[2].ids.len() > 3);
    for (i, (told, alone)) in told.iter().zip(&alone).enumerate() {
        if i == 2 {
            assert_eq!(told.ids, alone.ids[..3]);
            assert_eq!((told.logps.len(), told.finished), (3, false));
        } else {
            assert_eq!(told.ids, alone.ids, "{i}");
        }
    }
}
