//! Which examples make up the batch of a step.

use std::sync::{Mutex, PoisonError};

use rand::seq::SliceRandom;

use crate::error::{Error, Result};
use crate::streams::stream;

/// Steps after which the counts repeat. A source's examples per step are kept as a multiple of 1 / CYCLE.
const CYCLE: u64 = 10_000;

/// Visits every residue of `CYCLE` once, in an order that spreads evenly (golden ratio, coprime).
const STRIDE: u64 = 6_181;

/// Batches drawn from several sources in fixed proportions.
///
/// The batch of a step is a pure function of seed and step, so a resumed run needs no state. A step
/// takes from each source its share of the batch rounded down or up, always `batch` examples in all;
/// over 10,000 steps the shares are exact to one part in 10,000 of an example per step. Each source
/// is visited in epochs: every example once, in an order drawn anew for every epoch.
#[derive(Debug)]
pub struct Mixture {
    sources: Vec<Source>,
    batch: usize,
    seed: u64,
}

#[derive(Debug)]
struct Source {
    size: usize,
    /// Examples in the first `s` steps of a cycle, for `s` from 0 to `CYCLE`.
    before: Vec<u64>,
    /// The latest epoch and its order, kept because consecutive steps share it.
    order: Mutex<Option<(u64, Vec<usize>)>>,
}

impl Mixture {
    /// A mixture of sources with `sizes[i]` examples, in the proportions of `weights`.
    ///
    /// # Errors
    /// When there is no source, a source is empty, a weight is not a positive number, the two lists
    /// differ in length, or `batch` is 0.
    pub fn new(sizes: &[usize], weights: &[f64], batch: usize, seed: u64) -> Result<Self> {
        let range = |setting, expected, got: String| Err(Error::Range { setting, expected, got });
        if batch == 0 {
            return range("batch", "at least 1 example", "0".to_owned());
        }
        if sizes.is_empty() {
            return range("sources", "at least one source", "none".to_owned());
        }
        if sizes.len() != weights.len() {
            let got = format!("{} for {} sources", weights.len(), sizes.len());
            return range("weights", "one weight per source", got);
        }
        if let Some(i) = sizes.iter().position(|&size| size == 0) {
            return range("sources", "examples in every source", format!("none in source {i}"));
        }
        if let Some(i) = weights.iter().position(|w| !(*w > 0.0 && w.is_finite())) {
            let got = format!("{} for source {i}", weights[i]);
            return range("weights", "positive numbers", got);
        }
        let mut start = 0;
        let sources = sizes.iter().zip(quotas(weights, batch)).map(|(&size, quota)| {
            let whole = quota / CYCLE;
            let rest = quota % CYCLE;
            let mut before = Vec::with_capacity(CYCLE as usize + 1);
            let mut sum = 0;
            before.push(sum);
            for step in 0..CYCLE {
                // The remainders of all sources lie end to end on a line. A step puts a mark at its own
                // offset in every unit of the line; a source with a mark gets one more.
                let offset = step * STRIDE % CYCLE;
                let marks = |end: u64| (end + CYCLE - 1 - offset) / CYCLE;
                sum += whole + marks(start + rest) - marks(start);
                before.push(sum);
            }
            start += rest;
            Source {
                size,
                before,
                order: Mutex::new(None),
            }
        });
        Ok(Self {
            sources: sources.collect(),
            batch,
            seed,
        })
    }

    /// The batch of a step: pairs of source and example, ordered by source.
    pub fn batch(&self, step: u64) -> Vec<(usize, usize)> {
        let mut drawn = Vec::with_capacity(self.batch);
        for (index, source) in self.sources.iter().enumerate() {
            for at in source.drawn_before(step)..source.drawn_before(step + 1) {
                drawn.push((index, source.example(at, self.seed, index)));
            }
        }
        drawn
    }

    /// The number of examples that step takes from each source.
    pub fn counts(&self, step: u64) -> Vec<usize> {
        let count = |s: &Source| (s.drawn_before(step + 1) - s.drawn_before(step)) as usize;
        self.sources.iter().map(count).collect()
    }
}

impl Source {
    fn drawn_before(&self, step: u64) -> u64 {
        let per_cycle = self.before[CYCLE as usize];
        step / CYCLE * per_cycle + self.before[(step % CYCLE) as usize]
    }

    /// The example at one place of the endless sequence of shuffled epochs.
    fn example(&self, at: u64, seed: u64, index: usize) -> usize {
        let size = self.size as u64;
        let (epoch, within) = (at / size, (at % size) as usize);
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        match &*order {
            Some((kept, places)) if *kept == epoch => places[within],
            _ => {
                let mut places: Vec<usize> = (0..self.size).collect();
                places.shuffle(&mut stream(seed, &format!("order/{index}"), epoch));
                let example = places[within];
                *order = Some((epoch, places));
                example
            }
        }
    }
}

/// Examples of each source per cycle; they sum to `batch * CYCLE` by largest remainder.
fn quotas(weights: &[f64], batch: usize) -> Vec<u64> {
    let total: f64 = weights.iter().sum();
    let slots = batch as u64 * CYCLE;
    let exact: Vec<f64> = weights.iter().map(|w| w / total * slots as f64).collect();
    let mut quotas: Vec<u64> = exact.iter().map(|q| q.floor() as u64).collect();
    let mut by_remainder: Vec<usize> = (0..weights.len()).collect();
    by_remainder.sort_by(|&a, &b| {
        let remainder = |i: usize| exact[i] - exact[i].floor();
        remainder(b).total_cmp(&remainder(a)).then(a.cmp(&b))
    });
    let missing = slots - quotas.iter().sum::<u64>().min(slots);
    for &i in by_remainder.iter().cycle().take(missing as usize) {
        quotas[i] += 1;
    }
    quotas
}

#[cfg(test)]
mod tests {
    use super::{CYCLE, Mixture};
    use proptest::prelude::*;

    #[test]
    fn batches_are_a_function_of_seed_and_step() {
        let new = |seed| Mixture::new(&[10, 7], &[2.0, 1.0], 5, seed).unwrap();
        let (one, other) = (new(1), new(1));
        let forwards: Vec<_> = (0..50).map(|s| one.batch(s)).collect();
        let backwards: Vec<_> = (0..50).rev().map(|s| other.batch(s)).collect();
        assert_eq!(forwards, backwards.into_iter().rev().collect::<Vec<_>>());
        assert_ne!(forwards[0], new(2).batch(0));
    }

    #[test]
    fn sources_have_orders_of_their_own() {
        let mixture = Mixture::new(&[50, 50], &[1.0, 1.0], 100, 3).unwrap();
        let batch = mixture.batch(0);
        let of = |source| batch.iter().filter(move |b| b.0 == source).map(|b| b.1);
        assert!(of(0).ne(of(1)));
    }

    #[test]
    fn whole_shares_are_the_same_every_step() {
        let mixture = Mixture::new(&[9, 9, 9], &[1.0, 2.0, 1.0], 8, 0).unwrap();
        for step in 0..100 {
            assert_eq!(mixture.counts(step), [2, 4, 2]);
        }
    }

    #[test]
    fn mistakes_are_named() {
        let refused =
            |sizes: &[usize], weights: &[f64], batch| Mixture::new(sizes, weights, batch, 0).unwrap_err().to_string();
        assert_eq!(refused(&[1], &[1.0], 0), "batch: expected at least 1 example, got 0");
        assert_eq!(refused(&[], &[], 1), "sources: expected at least one source, got none");
        assert_eq!(
            refused(&[3, 0], &[1.0, 1.0], 1),
            "sources: expected examples in every source, got none in source 1"
        );
        assert_eq!(
            refused(&[3], &[1.0, 1.0], 1),
            "weights: expected one weight per source, got 2 for 1 sources"
        );
        for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = refused(&[3, 3], &[1.0, weight], 1);
            assert!(error.starts_with("weights: expected positive numbers, got "), "{error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn counts_are_rounded_shares_that_add_up(
            weights in prop::collection::vec(0.01f64..10.0, 1..6),
            batch in 1usize..40,
        ) {
            let sizes = vec![5; weights.len()];
            let mixture = Mixture::new(&sizes, &weights, batch, 0).unwrap();
            let total: f64 = weights.iter().sum();
            let mut sums = vec![0usize; weights.len()];
            for step in 0..CYCLE + 100 {
                let counts = mixture.counts(step);
                prop_assert_eq!(counts.iter().sum::<usize>(), batch);
                for ((sum, count), weight) in sums.iter_mut().zip(&counts).zip(&weights) {
                    let share = weight / total * batch as f64;
                    prop_assert!((*count as f64 - share).abs() < 1.0 + 1e-3);
                    *sum += count;
                    let so_far = share * (step + 1) as f64;
                    prop_assert!((*sum as f64 - so_far).abs() < 8.0, "{sum} of {so_far}");
                }
            }
        }

        #[test]
        fn an_epoch_visits_every_example_once(
            sizes in prop::collection::vec(1usize..12, 1..4),
            batch in 1usize..9,
            seed in any::<u64>(),
        ) {
            let weights = vec![1.0; sizes.len()];
            let mixture = Mixture::new(&sizes, &weights, batch, seed).unwrap();
            let drawn: Vec<_> = (0..200).flat_map(|s| mixture.batch(s)).collect();
            prop_assert_eq!(drawn.len(), 200 * batch);
            for (source, &size) in sizes.iter().enumerate() {
                let visits: Vec<_> = drawn.iter().filter(|d| d.0 == source).map(|d| d.1).collect();
                prop_assert!(!visits.is_empty());
                for epoch in visits.chunks_exact(size) {
                    let mut epoch = epoch.to_vec();
                    epoch.sort_unstable();
                    prop_assert!(epoch.into_iter().eq(0..size));
                }
            }
        }
    }
}
