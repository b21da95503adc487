//! Which parts of a model an optimiser updates.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::{Config, Error, LoraConfig, Param, Params, Result};

/// The part of a model that is trained, in manifests a map of one key: `{ all: {} }`, `{ top: { layers: 3 } }` or
/// `{ lora: { r: 8, alpha: 16, target_modules: all-linear } }`.
///
/// ```
/// use unsay_model::Trained;
///
/// let trained: Trained = serde_json::from_str(r#"{ "top": { "layers": 3 } }"#).unwrap();
/// assert_eq!(trained, Trained::Top { layers: 3 });
/// assert_eq!(Trained::default(), Trained::All {});
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Trained {
    /// Everything.
    All {},
    /// The last blocks, the final norm, and what stands on it: a score, or an output embedding of its own. The input
    /// embedding stays as it is, and with it an output embedding that is tied to it.
    Top {
        /// How many blocks, from the last; at least 1 and at most as many as there are.
        layers: usize,
    },
    /// A low-rank adapter beside frozen weights; of a classifier its score, too.
    Lora(LoraConfig),
}

impl Default for Trained {
    fn default() -> Self {
        Self::All {}
    }
}

impl Trained {
    /// Whether this is what a manifest gets that does not say.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// What is out of range for a model of `n_layers` blocks, where that is known, as (field, message).
    pub fn check(&self, n_layers: Option<usize>) -> Vec<(String, String)> {
        let layers = match self {
            Self::All {} => return Vec::new(),
            Self::Top { layers } => layers,
            Self::Lora(lora) => {
                let problem = lora.check().err();
                return problem
                    .map(|e| ("lora".to_owned(), e.to_string()))
                    .into_iter()
                    .collect();
            }
        };
        let wanted = match n_layers {
            Some(most) if *layers > most => format!("at most {most}, the blocks of the model"),
            _ if *layers == 0 => "at least 1".to_owned(),
            _ => return Vec::new(),
        };
        vec![("layers".to_owned(), format!("expected {wanted}, got {layers}"))]
    }

    /// The same for a model of this description, names of linear maps included.
    pub fn check_fit(&self, config: &Config) -> Vec<(String, String)> {
        let mut problems = self.check(Some(config.num_hidden_layers));
        if let (Self::Lora(lora), true) = (self, problems.is_empty()) {
            let misfit = lora.check_fit(config).err();
            problems.extend(misfit.map(|e| ("lora".to_owned(), e.to_string())));
        }
        problems
    }
}

impl Params {
    /// Makes exactly this part trainable, in a model of `n_blocks` blocks.
    pub(crate) fn choose(&mut self, trained: &Trained, n_blocks: usize) -> Result<()> {
        if let Some((field, what)) = trained.check(Some(n_blocks)).into_iter().next() {
            return Err(Error::Config {
                place: "trained part".to_owned(),
                what: format!("`{field}`: {what}"),
            });
        }
        match trained {
            Trained::All {} => self.train_only(|_| true),
            // Put on where the blocks are at hand.
            Trained::Lora(_) => Ok(()),
            Trained::Top { layers } => {
                let parts = self.parts();
                let first = n_blocks - layers;
                self.train_only(|name| match parts.get(name) {
                    Some(Part::Block(index)) => *index >= first,
                    Some(Part::Above) => true,
                    Some(Part::Below) | None => false,
                })
            }
        }
    }

    /// How many of the lowest blocks have nothing that is trained; 0 where the embedding is trained.
    pub fn n_frozen(&self) -> usize {
        let parts = self.parts();
        let block = |name: &str| match parts.get(name) {
            Some(Part::Below) => Some(0),
            Some(Part::Block(index)) => Some(*index),
            Some(Part::Above) | None => None,
        };
        let n_blocks = self
            .iter()
            .filter_map(|(name, _)| block(name))
            .max()
            .map_or(0, |last| last + 1);
        let trained = self.trainable().filter_map(|param| block(param.name()));
        trained.min().unwrap_or(n_blocks)
    }

    /// The embedding and the lowest `n_blocks` blocks, in order.
    pub fn below(&self, n_blocks: usize) -> impl Iterator<Item = &Param> {
        let parts = self.parts();
        self.all().filter(move |param| match parts.get(param.name()) {
            Some(Part::Below) => true,
            Some(Part::Block(index)) => *index < n_blocks,
            Some(Part::Above) | None => false,
        })
    }

    /// The part that each tensor belongs to.
    fn parts(&self) -> HashMap<String, Part> {
        let mut before = true;
        let part = |(name, _): (&str, &Tensor)| {
            let part = match block_of(name) {
                Some(index) => Part::Block(index),
                None if before => Part::Below,
                None => Part::Above,
            };
            before &= part == Part::Below;
            (name.to_owned(), part)
        };
        self.iter().map(part).collect()
    }
}

/// Where a tensor stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Before the first block.
    Below,
    Block(usize),
    /// After the last block.
    Above,
}

/// The block of a tensor: in every architecture its name holds one number, the block's.
pub(crate) fn block_of(name: &str) -> Option<usize> {
    name.split('.').find_map(|word| word.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_the_model() {
        let top = |layers| Trained::Top { layers };
        assert!(top(3).check(Some(3)).is_empty() && top(3).check(None).is_empty());
        assert!(Trained::default().check(Some(1)).is_empty());
        assert_eq!(
            top(4).check(Some(3)),
            [(
                "layers".to_owned(),
                "expected at most 3, the blocks of the model, got 4".to_owned()
            )]
        );
        assert_eq!(top(0).check(Some(3))[0].1, "expected at least 1, got 0");
        assert_eq!(top(0).check(None).len(), 1);
    }

    #[test]
    fn manifests_write_one_key() {
        let read = |text: &str| serde_json::from_str::<Trained>(text);
        assert_eq!(read(r#"{"all": {}}"#).unwrap(), Trained::default());
        let lora = read(r#"{"lora": {"r": 8, "alpha": 16, "target_modules": "all-linear"}}"#).unwrap();
        assert!(matches!(&lora, Trained::Lora(lora) if lora.r == 8) && lora.check(None).is_empty());
        let none = read(r#"{"lora": {"r": 0, "alpha": 16, "target_modules": ["q_proj"]}}"#).unwrap();
        assert!(none.check(Some(2))[0].1.contains("`r`: expected 1 to"));
        assert!(read(r#"{"top": {}}"#).is_err());
        assert!(read(r#"{"top": {"layers": 1, "norm": false}}"#).is_err());
        assert!(read(r#"{"bottom": {"layers": 1}}"#).is_err());
        assert!(!Trained::Top { layers: 1 }.is_default());
    }
}
