//! What a low-rank adapter is: its settings, and which linear maps they mean.

use serde::de::{SeqAccess, Visitor, value::SeqAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::arch::Spec;
use crate::linear::{Layout, LinearShape};
use crate::trained::block_of;
use crate::{Config, Error, Result};

/// PEFT's word for every linear map of the blocks.
pub(crate) const ALL_LINEAR: &str = "all-linear";

/// Larger ranks are no longer low for any model that this crate can hold.
const LARGEST_RANK: usize = 1 << 12;

/// A larger strength overflows what it is added to.
const LARGEST_ALPHA: f64 = 1e6;

/// A low-rank adapter, in the words of PEFT's `LoraConfig`: `y = x Wᵀ + b + s (x Aᵀ) Bᵀ`, with A [r, in] and B [out, r]
/// trained and W and b frozen.
///
/// **Reference**: E. J. Hu and others, "LoRA: Low-Rank Adaptation of Large Language Models", 2021, section 4.1; for
/// `use_rslora` D. Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", 2023.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank; 1 to 4096.
    pub r: usize,
    /// Strength; above 0, at most 1e6. The scale `s` is `alpha / r`.
    pub alpha: f64,
    /// Which linear maps get an adapter.
    pub target_modules: TargetModules,
    /// In which blocks, counted from 0; all of them without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Layers>,
    /// Whether the scale is `alpha / √r` instead.
    #[serde(default)]
    pub use_rslora: bool,
}

/// Which linear maps of the blocks get an adapter: `all-linear`, or a list of names such as `q_proj`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetModules {
    /// Every linear map of every block; embeddings and heads are none of a block's.
    AllLinear,
    /// Those whose whole name is in the list, or whose name ends in a dot and one of the list.
    Named(Vec<String>),
}

/// A choice of blocks, counted from 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Layers {
    /// Just these: `{ list: [0, 3] }`.
    List(Vec<usize>),
    /// From the first to the last, both included: `{ range: { first: 24, last: 29 } }`.
    Range {
        /// The lowest block.
        first: usize,
        /// The highest block.
        last: usize,
    },
}

impl Serialize for TargetModules {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::AllLinear => serializer.serialize_str(ALL_LINEAR),
            Self::Named(names) => names.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for TargetModules {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TargetVisitor)
    }
}

struct TargetVisitor;

impl<'de> Visitor<'de> for TargetVisitor {
    type Value = TargetModules;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{ALL_LINEAR}` or a list of module names")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<TargetModules, E> {
        match text {
            ALL_LINEAR => Ok(TargetModules::AllLinear),
            _ => Err(E::invalid_value(serde::de::Unexpected::Str(text), &self)),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<TargetModules, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(list)).map(TargetModules::Named)
    }
}

impl LoraConfig {
    /// Refuses what no adapter can have.
    pub fn check(&self) -> Result<()> {
        if !(1..=LARGEST_RANK).contains(&self.r) {
            return Err(Error::input("`r`", format!("1 to {LARGEST_RANK}"), self.r));
        }
        if !(self.alpha > 0.0 && self.alpha <= LARGEST_ALPHA) {
            let expected = format!("above 0 and at most {LARGEST_ALPHA:e}");
            return Err(Error::input("`alpha`", expected, self.alpha));
        }
        if let TargetModules::Named(names) = &self.target_modules {
            if names.is_empty() {
                return Err(Error::input("`target_modules`", "at least one name", "none"));
            }
            let mut sorted: Vec<&String> = names.iter().collect();
            sorted.sort();
            if let Some(twice) = sorted.windows(2).find(|w| w[0] == w[1]) {
                let got = format!("`{}` twice", twice[0]);
                return Err(Error::input("`target_modules`", "distinct names", got));
            }
            if sorted.iter().any(|n| n.is_empty()) {
                return Err(Error::input("`target_modules`", "names", "an empty one"));
            }
        }
        self.layers.as_ref().map_or(Ok(()), Layers::check)
    }

    /// s.
    pub(crate) fn scale(&self) -> f64 {
        let r = self.r as f64;
        self.alpha / if self.use_rslora { r.sqrt() } else { r }
    }

    /// Refuses names and blocks that a model of this description does not have.
    pub(crate) fn check_fit(&self, config: &Config) -> Result<()> {
        let map = |spec: Spec| {
            // Names and blocks alone are looked at; which axis comes first does not matter.
            let &[n_out, n_in] = spec.shape.as_slice() else {
                return None;
            };
            Some(LinearShape {
                module: spec.name.strip_suffix(".weight")?.to_owned(),
                block: block_of(&spec.name)?,
                n_in,
                n_out,
                layout: Layout::OutIn,
            })
        };
        let tensors = config.architecture.form().tensors(config).into_iter();
        self.targets(&tensors.filter_map(map).collect::<Vec<_>>(), config.num_hidden_layers)
            .map(drop)
    }

    /// Which of a model's linear maps are meant, in the model's order. A name that means none, or a block that is not
    /// there, is an error.
    pub(crate) fn targets<'a>(&self, linear: &'a [LinearShape], n_layers: usize) -> Result<Vec<&'a LinearShape>> {
        if let Some(last) = self.layers.as_ref().map(Layers::last).filter(|&last| last >= n_layers) {
            let expected = format!("block numbers below {n_layers}");
            return Err(Error::input("`layers`", expected, last));
        }
        if let TargetModules::Named(names) = &self.target_modules {
            for name in names {
                if !linear.iter().any(|l| means(name, &l.module)) {
                    let known = known_names(linear).join(", ");
                    return Err(Error::input(
                        "`target_modules`",
                        format!("one of {known}"),
                        format!("`{name}`"),
                    ));
                }
            }
        }
        let wanted = |l: &&LinearShape| {
            let named = match &self.target_modules {
                TargetModules::AllLinear => true,
                TargetModules::Named(names) => names.iter().any(|n| means(n, &l.module)),
            };
            named && self.layers.as_ref().is_none_or(|layers| layers.contains(l.block))
        };
        let found: Vec<&LinearShape> = linear.iter().filter(wanted).collect();
        if found.is_empty() {
            return Err(Error::input(
                "`target_modules` in `layers`",
                "at least one linear map",
                "none",
            ));
        }
        Ok(found)
    }
}

/// PEFT's rule: the whole name, or the end of it after a dot.
pub(crate) fn means(target: &str, module: &str) -> bool {
    module
        .strip_suffix(target)
        .is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// The last parts of the names, once each, as a list of targets would hold them.
fn known_names(linear: &[LinearShape]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for shape in linear {
        let last = shape.module.rsplit('.').next().unwrap_or_default();
        let name = format!("`{last}`");
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

impl Layers {
    fn check(&self) -> Result<()> {
        match self {
            Self::List(list) if list.is_empty() => Err(Error::input("`layers`", "at least one block", "none")),
            Self::List(list) => {
                let mut sorted = list.clone();
                sorted.sort_unstable();
                match sorted.windows(2).find(|w| w[0] == w[1]) {
                    Some(twice) => {
                        let got = format!("{} twice", twice[0]);
                        Err(Error::input("`layers`", "distinct block numbers", got))
                    }
                    None => Ok(()),
                }
            }
            Self::Range { first, last } if first > last => {
                let got = format!("{first} to {last}");
                Err(Error::input("`layers`", "`first` at most `last`", got))
            }
            Self::Range { .. } => Ok(()),
        }
    }

    fn contains(&self, layer: usize) -> bool {
        match self {
            Self::List(list) => list.contains(&layer),
            Self::Range { first, last } => (*first..=*last).contains(&layer),
        }
    }

    fn last(&self) -> usize {
        match self {
            Self::List(list) => list.iter().copied().max().unwrap_or(0),
            Self::Range { last, .. } => *last,
        }
    }

    /// Every block of the choice; call it once the last one is known to exist.
    pub(crate) fn to_list(&self) -> Vec<usize> {
        match self {
            Self::List(list) => list.clone(),
            Self::Range { first, last } => (*first..=*last).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<LoraConfig, String> {
        serde_json::from_str(text).map_err(|e| e.to_string())
    }

    #[test]
    fn settings_are_read_in_their_manifest_form() {
        let least = read(r#"{ "r": 8, "alpha": 16, "target_modules": "all-linear" }"#).unwrap();
        let expected = LoraConfig {
            r: 8,
            alpha: 16.0,
            target_modules: TargetModules::AllLinear,
            layers: None,
            use_rslora: false,
        };
        assert_eq!(least, expected);
        let most = r#"{ "r": 4, "alpha": 0.5, "target_modules": ["q_proj", "mlp.up_proj"],
            "layers": { "range": { "first": 1, "last": 3 } }, "use_rslora": true }"#;
        let most = read(most).unwrap();
        assert_eq!(most.layers.as_ref().unwrap().to_list(), [1, 2, 3]);
        for settings in [least, most] {
            settings.check().unwrap();
            assert_eq!(read(&serde_json::to_string(&settings).unwrap()), Ok(settings));
        }
        let list = r#"{ "r": 4, "alpha": 1, "target_modules": ["q_proj"], "layers": { "list": [3, 0] } }"#;
        assert_eq!(read(list).unwrap().layers, Some(Layers::List(vec![3, 0])));
    }

    #[test]
    fn what_is_missing_or_unknown_is_an_error() {
        let cases = [
            (
                r#"{ "alpha": 16, "target_modules": "all-linear" }"#,
                "missing field `r`",
            ),
            (r#"{ "r": 8, "target_modules": "all-linear" }"#, "missing field `alpha`"),
            (r#"{ "r": 8, "alpha": 16 }"#, "missing field `target_modules`"),
            (
                r#"{ "r": 8, "alpha": 16, "target_modules": ".*_proj" }"#,
                "invalid value: string \".*_proj\", expected `all-linear` or a list of module names",
            ),
            (
                r#"{ "r": 8, "alpha": 16, "target_modules": 3 }"#,
                "invalid type: integer `3`, expected `all-linear` or a list of module names",
            ),
            (
                r#"{ "r": 8, "alpha": 16, "target_modules": ["q"], "dropout": 0.1 }"#,
                "unknown field `dropout`",
            ),
            (
                r#"{ "r": 8, "alpha": 16, "target_modules": ["q"], "layers": { "top": 2 } }"#,
                "unknown variant `top`",
            ),
        ];
        for (text, expected) in cases {
            let error = read(text).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn the_scale_is_alpha_over_r_or_its_root() {
        let settings = |use_rslora| LoraConfig {
            r: 16,
            alpha: 8.0,
            target_modules: TargetModules::AllLinear,
            layers: None,
            use_rslora,
        };
        assert!((settings(false).scale() - 0.5).abs() < 1e-15);
        assert!((settings(true).scale() - 2.0).abs() < 1e-15);
    }

    #[test]
    fn a_target_is_a_name_or_the_end_of_one_after_a_dot() {
        let module = "model.layers.1.self_attn.q_proj";
        for target in ["q_proj", "self_attn.q_proj", module] {
            assert!(means(target, module), "{target}");
        }
        for target in [
            "proj",
            "_proj",
            "q_proj.",
            "layers.1",
            "x.model.layers.1.self_attn.q_proj",
            "",
        ] {
            assert!(!means(target, module), "{target}");
        }
    }
}
