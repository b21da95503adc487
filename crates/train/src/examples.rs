//! The encoded examples of a run: the sources it trains on and the set it is validated on.

use std::fmt::Debug;

use sha2::{Digest, Sha256};
use unsay_data::{Encoded, EncodedPair, Tokenizer};

use crate::error::{Error, Result};

/// One of the things that a run trains on, as tokens.
pub trait Sample: Debug + Clone {
    /// The index of what it was made of.
    fn example(&self) -> usize;

    /// How many tokens it has.
    fn n_tokens(&self) -> usize;

    /// How many tokens its longest sequence has.
    fn longest(&self) -> usize;

    /// All its tokens.
    fn tokens(&self) -> impl Iterator<Item = u32>;

    /// Refuses one that has nothing to learn.
    ///
    /// **Errors**: those of the data crate.
    fn check(&self) -> unsay_data::Result<()>;

    /// Hands over everything that makes it different from others.
    fn feed(&self, to: &mut dyn FnMut(&[u8]));
}

impl Sample for Encoded {
    fn example(&self) -> usize {
        self.example
    }

    fn n_tokens(&self) -> usize {
        self.ids.len()
    }

    fn longest(&self) -> usize {
        self.ids.len()
    }

    fn tokens(&self) -> impl Iterator<Item = u32> {
        self.ids.iter().copied()
    }

    fn check(&self) -> unsay_data::Result<()> {
        self.check()
    }

    fn feed(&self, to: &mut dyn FnMut(&[u8])) {
        to(&[self.label as u8]);
        feed_spans(self, to);
        feed_ids(&self.ids, to);
    }
}

impl Sample for EncodedPair {
    fn example(&self) -> usize {
        self.example
    }

    fn n_tokens(&self) -> usize {
        self.n_tokens()
    }

    fn longest(&self) -> usize {
        self.prompt.len()
            + self
                .branches()
                .map(|branch| branch.ids.len())
                .into_iter()
                .fold(0, usize::max)
    }

    fn tokens(&self) -> impl Iterator<Item = u32> {
        let branches = self.branches().map(|branch| &branch.ids);
        let all = [&self.prompt].into_iter().chain(branches);
        all.flat_map(|ids| ids.iter().copied())
    }

    fn check(&self) -> unsay_data::Result<()> {
        self.check()
    }

    fn feed(&self, to: &mut dyn FnMut(&[u8])) {
        feed_ids(&self.prompt, to);
        for branch in self.branches() {
            to(&branch.n_learnt.to_le_bytes());
            feed_ids(&branch.ids, to);
        }
    }
}

/// Encoded examples from one place, with names for messages.
#[derive(Debug, Clone)]
pub struct Source<E = Encoded> {
    /// The examples.
    pub encoded: Vec<E>,
    /// The id of every example before encoding; [`Sample::example`] is an index into it.
    pub ids: Vec<String>,
    /// The share of a batch taken from this source, relative to the other sources. Not used for validation.
    pub weight: f64,
}

impl<E: Sample> Source<E> {
    fn name(&self, index: usize) -> String {
        let id = self
            .encoded
            .get(index)
            .and_then(|encoded| self.ids.get(encoded.example()));
        id.cloned().unwrap_or_else(|| format!("example {index}"))
    }
}

/// Where an example is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In a training source.
    Train {
        /// The source.
        source: usize,
        /// The example within the source.
        index: usize,
    },
    /// In the validation set.
    Valid {
        /// The example within the set.
        index: usize,
    },
}

/// What a run trains on and is validated on.
#[derive(Debug, Clone)]
pub struct Examples<E = Encoded> {
    sources: Vec<Source<E>>,
    valid: Source<E>,
    fingerprint: String,
}

impl<E: Sample> Examples<E> {
    /// Checks that there is something to train and to validate on, and that every example has a target.
    pub fn new(sources: Vec<Source<E>>, valid: Source<E>) -> Result<Self> {
        if sources.is_empty() {
            return Err(Error::Data("no training source".into()));
        }
        if valid.encoded.is_empty() {
            return Err(Error::Data("the validation set is empty".into()));
        }
        let mut hash = Sha256::new();
        for (idx, source) in sources.iter().chain([&valid]).enumerate() {
            if source.encoded.is_empty() {
                return Err(Error::Data(format!("training source {idx} is empty")));
            }
            hash.update(source.weight.to_le_bytes());
            hash.update(source.encoded.len().to_le_bytes());
            for (position, encoded) in source.encoded.iter().enumerate() {
                if encoded.check().is_err() {
                    let name = source.name(position);
                    return Err(Error::Data(format!("`{name}`: no completion after a prompt")));
                }
                encoded.feed(&mut |bytes| hash.update(bytes));
            }
        }
        Ok(Self {
            sources,
            valid,
            fingerprint: hex(&hash.finalize()),
        })
    }

    /// The training sources.
    pub fn sources(&self) -> &[Source<E>] {
        &self.sources
    }

    /// The validation set.
    pub fn valid(&self) -> &Source<E> {
        &self.valid
    }

    /// The places of the whole validation set, in order.
    pub fn valid_places(&self) -> Vec<Place> {
        (0..self.valid.encoded.len())
            .map(|index| Place::Valid { index })
            .collect()
    }

    /// The example at a place.
    pub fn get(&self, place: Place) -> Result<&E> {
        let found = match place {
            Place::Train { source, index } => self.sources.get(source).and_then(|s| s.encoded.get(index)),
            Place::Valid { index } => self.valid.encoded.get(index),
        };
        found.ok_or_else(|| Error::Data(format!("no example at {place:?}")))
    }

    /// The id of the example at a place, for messages.
    pub fn name(&self, place: Place) -> String {
        match place {
            Place::Train { source, index } => self.sources[source].name(index),
            Place::Valid { index } => self.valid.name(index),
        }
    }

    /// The lengths of some examples, in tokens.
    pub fn lengths(&self, places: &[Place]) -> Result<Vec<usize>> {
        places.iter().map(|&place| Ok(self.get(place)?.n_tokens())).collect()
    }

    /// All training examples, source after source.
    pub fn train_iter(&self) -> impl Iterator<Item = &E> {
        self.sources.iter().flat_map(|source| &source.encoded)
    }

    /// The validation examples.
    pub fn valid_iter(&self) -> impl Iterator<Item = &E> {
        self.valid.encoded.iter()
    }

    /// Refuses examples that a model of this vocabulary and this many positions cannot read.
    pub(crate) fn check_fit(&self, vocab_size: usize, positions: usize) -> Result<()> {
        for source in self.sources.iter().chain([&self.valid]) {
            for (index, encoded) in source.encoded.iter().enumerate() {
                let problem = if encoded.longest() > positions {
                    format!("{} tokens, but the model has {positions} positions", encoded.longest())
                } else if let Some(id) = encoded.tokens().find(|&id| id as usize >= vocab_size) {
                    format!("token {id}, but the model's vocabulary has {vocab_size}")
                } else {
                    continue;
                };
                return Err(Error::Data(format!("`{}`: {problem}", source.name(index))));
            }
        }
        Ok(())
    }

    /// A hash of all tokens, labels and weights: two runs with the same one see the same examples.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

/// One completion that reaches to the end, ended by the own end token or not, is known by its start alone: checkpoints from
/// when there was nothing else stay valid.
fn feed_spans(encoded: &Encoded, to: &mut dyn FnMut(&[u8])) {
    let spans = &encoded.spans;
    if let [only] = spans.as_slice() {
        let own_end = encoded.ids.last() == Some(&Tokenizer::EOS);
        if only.end == encoded.ids.len() && only.ended == own_end {
            to(&only.start.to_le_bytes());
            return;
        }
    }
    // A start that no sequence has.
    to(&usize::MAX.to_le_bytes());
    to(&spans.len().to_le_bytes());
    for span in spans {
        to(&span.start.to_le_bytes());
        to(&span.end.to_le_bytes());
        to(&[u8::from(span.ended)]);
    }
}

fn feed_ids(ids: &[u32], to: &mut dyn FnMut(&[u8])) {
    to(&ids.len().to_le_bytes());
    ids.iter().for_each(|id| to(&id.to_le_bytes()));
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use unsay_data::{Label, Span};

    fn source(lengths: &[usize], weight: f64) -> Source {
        let encode = |(example, &length): (usize, &usize)| Encoded {
            ids: (0..length as u32).collect(),
            spans: vec![Span {
                start: 1,
                end: length,
                ended: false,
            }],
            label: Label::Positive,
            example,
        };
        let encoded = lengths.iter().enumerate().map(encode).collect();
        Source {
            encoded,
            ids: (0..lengths.len()).map(|i| format!("id{i}")).collect(),
            weight,
        }
    }

    #[test]
    fn places_give_examples_lengths_and_names() {
        let examples = Examples::new(vec![source(&[2, 3], 1.0), source(&[4], 2.0)], source(&[5], 1.0)).unwrap();
        let places = [
            Place::Train { source: 0, index: 1 },
            Place::Train { source: 1, index: 0 },
            Place::Valid { index: 0 },
        ];
        assert_eq!(examples.lengths(&places).unwrap(), [3, 4, 5]);
        assert_eq!(places.map(|place| examples.name(place)), ["id1", "id0", "id0"]);
        assert!(examples.get(Place::Valid { index: 1 }).is_err());
        assert_eq!(examples.valid_places(), [Place::Valid { index: 0 }]);
        assert_eq!((examples.train_iter().count(), examples.valid_iter().count()), (3, 1));
    }

    #[test]
    fn what_cannot_be_trained_on_is_refused() {
        let refused = |sources, valid| Examples::new(sources, valid).unwrap_err().to_string();
        assert!(refused(vec![], source(&[2], 1.0)).contains("no training source"));
        assert!(refused(vec![source(&[2], 1.0), source(&[], 1.0)], source(&[2], 1.0)).contains("source 1 is empty"));
        assert!(refused(vec![source(&[2], 1.0)], source(&[], 1.0)).contains("validation set is empty"));
        assert!(refused(vec![source(&[1], 1.0)], source(&[2], 1.0)).contains("`id0`: no completion"));
        let examples = Examples::new(vec![source(&[2], 1.0)], source(&[6], 1.0)).unwrap();
        let unfit = |vocab, positions| examples.check_fit(vocab, positions).unwrap_err().to_string();
        assert!(unfit(10, 5).contains("6 tokens, but the model has 5 positions"));
        assert!(unfit(5, 10).contains("token 5, but the model's vocabulary has 5"));
        examples.check_fit(6, 6).unwrap();
    }

    #[test]
    fn the_fingerprint_sees_every_span() {
        let print = |spans: &[(usize, usize, bool)]| {
            let span = |&(start, end, ended)| Span { start, end, ended };
            let mut train = source(&[7], 1.0);
            train.encoded[0].spans = spans.iter().map(span).collect();
            Examples::new(vec![train], source(&[4], 1.0))
                .unwrap()
                .fingerprint()
                .to_owned()
        };
        let mut prints = vec![
            print(&[(1, 7, false)]),
            print(&[(1, 7, true)]),
            print(&[(1, 6, false)]),
            print(&[(2, 7, false)]),
            print(&[(1, 3, false), (4, 7, false)]),
            print(&[(1, 3, true), (4, 7, false)]),
            print(&[(1, 3, false), (5, 7, false)]),
        ];
        prints.sort();
        prints.dedup();
        assert_eq!(prints.len(), 7);
    }

    #[test]
    fn the_fingerprint_sees_tokens_and_weights() {
        let print = |sources, valid| Examples::new(sources, valid).unwrap().fingerprint().to_owned();
        let first = print(vec![source(&[2, 3], 1.0)], source(&[4], 1.0));
        assert_eq!(first, print(vec![source(&[2, 3], 1.0)], source(&[4], 1.0)));
        assert_ne!(first, print(vec![source(&[2, 3], 2.0)], source(&[4], 1.0)));
        assert_ne!(first, print(vec![source(&[3, 2], 1.0)], source(&[4], 1.0)));
        assert_ne!(
            first,
            print(vec![source(&[2], 1.0), source(&[3], 1.0)], source(&[4], 1.0))
        );
    }
}
