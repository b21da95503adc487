//! Adapter folders in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`. What changes the maths and is
//! not computed here is refused by name.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor};

use crate::arch::Spec;
use crate::classifier::SCORE;
use crate::fields::Fields;
use crate::linear::{Layout, LinearShape};
use crate::lora::{ALL_LINEAR, Layers, LoraConfig, TargetModules, means};
use crate::low_rank::{Adapter, PREFIX};
use crate::{Error, Params, Result, files, hf, shards, weights};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// Fields that say where an adapter comes from, or how its training began, and change nothing that is computed here. PEFT
/// itself decides by the module what `fan_in_fan_out` says.
const NO_EFFECT: [&str; 10] = [
    "auto_mapping",
    "base_model_name_or_path",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "loftq_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
];

/// Ways to begin that leave the base weights as they are. `pissa`, `olora`, `corda`, `loftq` and `lora_ga` do not.
const HARMLESS_INIT: [&str; 3] = ["gaussian", "orthogonal", "eva"];

/// Names that PEFT gives a classifier's head.
const HEADS: [&str; 2] = ["classifier", "score"];

/// What the model is for, in PEFT's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    CausalLm,
    SequenceClassification,
}

impl Task {
    fn name(self) -> &'static str {
        match self {
            Self::CausalLm => "CAUSAL_LM",
            Self::SequenceClassification => "SEQ_CLS",
        }
    }
}

/// An adapter's description; its tensors are still on disk.
#[derive(Debug)]
pub(crate) struct Described {
    pub(crate) config: LoraConfig,
    pub(crate) notes: Vec<String>,
    dir: PathBuf,
}

/// Reads and checks a description for a model with the given linear maps.
pub(crate) fn read(dir: &Path, task: Task, linear: &[LinearShape]) -> Result<Described> {
    let map = hf::read_object(dir, CONFIG)?;
    let mut notes = Vec::new();
    let config = parse(map, task, linear, &mut notes).map_err(|what| Error::Config {
        place: format!("`{}`", dir.join(CONFIG).display()),
        what,
    })?;
    Ok(Described {
        config,
        notes,
        dir: dir.to_owned(),
    })
}

impl Described {
    /// Reads the adapter's tensors, in its order, and then `more`, in a kind.
    pub(crate) fn tensors(&self, adapter: &Adapter, more: Option<Spec>, kind: Kind) -> Result<Vec<(String, Tensor)>> {
        let mut expected = adapter.tensors();
        expected.extend(more);
        shards::read_file(&self.dir, WEIGHTS, expected, (kind, Device::Cpu))
    }
}

fn parse(
    map: Map<String, Value>,
    task: Task,
    linear: &[LinearShape],
    notes: &mut Vec<String>,
) -> Result<LoraConfig, String> {
    let mut fields = Fields::new(map);
    match fields.take("peft_type") {
        Some(kind) if kind == "LORA" => {}
        got => return Err(format!("`peft_type`: only \"LORA\" is supported, got {}", shown(got))),
    }
    if let Some(got) = fields.take("task_type").filter(|got| got != task.name()) {
        return Err(format!("`task_type`: expected \"{}\" or none, got {got}", task.name()));
    }
    fields.only("bias", &json!("none"))?;
    match fields.take("init_lora_weights") {
        None | Some(Value::Bool(_)) => {}
        Some(Value::String(way)) if HARMLESS_INIT.contains(&way.as_str()) => {}
        Some(got) => {
            return Err(format!(
                "`init_lora_weights`: {got} changes the base weights\nhint: convert the adapter to plain LoRA with PEFT"
            ));
        }
    }
    saved_modules(fields.take("modules_to_save"), task)?;
    if let Some(got) = fields.take("lora_dropout") {
        match got.as_f64() {
            Some(p) if p > 0.0 && p < 1.0 => {
                notes.push(format!("`lora_dropout` {p} has no effect: nothing is dropped here"));
            }
            Some(0.0) => {}
            _ => return Err(format!("`lora_dropout`: expected 0 to below 1, got {got}")),
        }
    }
    let targets = targets(fields.take("target_modules"), linear, notes)?;
    let layers = layers(
        fields.take("layers_to_transform"),
        fields.take("layers_pattern"),
        &targets,
        linear,
    )?;
    let r = fields.size("r", Some(8))?;
    let alpha = fields.number("lora_alpha", 8.0)?;
    let use_rslora = fields.flag("use_rslora", false)?;
    for name in NO_EFFECT {
        let _ = fields.take(name);
    }
    if let Some((name, got)) = fields.rest().iter().find(|(_, value)| !says_nothing(value)) {
        return Err(format!("`{name}` is not supported, got {got}"));
    }
    let config = LoraConfig {
        r,
        alpha,
        target_modules: targets,
        layers,
        use_rslora,
    };
    config.check().map_err(|e| e.to_string())?;
    Ok(config)
}

fn shown(value: Option<Value>) -> String {
    value.map_or_else(|| "none".to_owned(), |v| v.to_string())
}

/// Off, empty or absent, whatever the field means.
fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

/// A classifier's head is stored with its adapter, under either name; a language model's is not.
fn saved_modules(value: Option<Value>, task: Task) -> Result<(), String> {
    let refused = |got: &dyn std::fmt::Display| {
        let expected = match task {
            Task::CausalLm => "none",
            Task::SequenceClassification => "\"score\"",
        };
        Err(format!("`modules_to_save`: expected {expected}, got {got}"))
    };
    let Some(value) = value else {
        // PEFT adds both names itself when it makes or reads the adapter of a classifier.
        return Ok(());
    };
    let Some(names) = words(&value) else {
        return refused(&value);
    };
    let fits = match task {
        Task::CausalLm => names.is_empty(),
        Task::SequenceClassification => names.iter().all(|n| HEADS.contains(n)),
    };
    if fits { Ok(()) } else { refused(&value) }
}

/// The entries of a list of texts.
fn words(value: &Value) -> Option<Vec<&str>> {
    value.as_array()?.iter().map(Value::as_str).collect()
}

fn targets(value: Option<Value>, linear: &[LinearShape], notes: &mut Vec<String>) -> Result<TargetModules, String> {
    let value = value.ok_or("`target_modules` is missing; expected a list of names")?;
    if let Value::String(text) = &value {
        if text.eq_ignore_ascii_case(ALL_LINEAR) {
            return Ok(TargetModules::AllLinear);
        }
        return Err(format!(
            "`target_modules`: a regular expression is not supported, got {value}\nhint: list the names instead"
        ));
    }
    let names = words(&value).ok_or_else(|| format!("`target_modules`: expected a list of names, got {value}"))?;
    let (known, unknown): (Vec<&str>, Vec<&str>) = names
        .into_iter()
        .partition(|n| linear.iter().any(|l| means(n, &l.module)));
    if known.is_empty() {
        return Err(format!(
            "`target_modules`: none is a linear map of the model's blocks, got {value}"
        ));
    }
    // PEFT passes over such names; an adapter on an embedding or a head shows in tensors that do not fit.
    notes.extend(
        unknown
            .into_iter()
            .map(|n| format!("`target_modules`: `{n}` names nothing in this model's blocks")),
    );
    // How PEFT writes `all-linear` out.
    if known.len() == linear.len() && linear.iter().all(|l| known.contains(&l.module.as_str())) {
        return Ok(TargetModules::AllLinear);
    }
    Ok(TargetModules::Named(known.into_iter().map(str::to_owned).collect()))
}

/// PEFT lets `layers_to_transform` choose among names that are ends of a module's name, and not among whole names.
fn layers(
    value: Option<Value>,
    pattern: Option<Value>,
    targets: &TargetModules,
    linear: &[LinearShape],
) -> Result<Option<Layers>, String> {
    let value = value.filter(|v| !says_nothing(v));
    let pattern = pattern.filter(|v| !says_nothing(v));
    let broken = |got: &Value| format!("`layers_to_transform`: expected block numbers, got {got}");
    let number = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
    let Some(value) = value else {
        return match pattern {
            Some(got) => Err(format!("`layers_pattern` without `layers_to_transform`, got {got}")),
            None => Ok(None),
        };
    };
    let list: Option<Vec<usize>> = match &value {
        Value::Array(list) => list.iter().map(number).collect(),
        one => number(one).map(|n| vec![n]),
    };
    let list = list.ok_or_else(|| broken(&value))?;
    if let Some(pattern) = pattern {
        let names = match &pattern {
            Value::String(one) => Some(vec![one.as_str()]),
            several => words(several),
        };
        let own = block_list(linear);
        if !names.is_some_and(|names| names.contains(&own)) {
            return Err(format!("`layers_pattern`: expected \"{own}\", got {pattern}"));
        }
    }
    let whole = match targets {
        TargetModules::AllLinear => Some(ALL_LINEAR),
        TargetModules::Named(names) => names
            .iter()
            .map(String::as_str)
            .find(|n| linear.iter().any(|l| l.module == *n)),
    };
    match whole {
        Some(name) => Err(format!(
            "`layers_to_transform`: PEFT does not apply it to `{name}` of `target_modules`, got {value}"
        )),
        None => Ok(Some(Layers::List(list))),
    }
}

/// What stands before a block's number: `layers` or `h`.
fn block_list(linear: &[LinearShape]) -> &str {
    let first = linear.first().map_or("", |l| l.module.as_str());
    let parts: Vec<&str> = first.split('.').collect();
    parts
        .windows(2)
        .find(|w| w[1].parse::<usize>().is_ok())
        .map_or("", |w| w[0])
}

/// Writes what [`read`] and PEFT read back, weights before their description.
pub(crate) fn write(dir: &Path, task: Task, adapter: &Adapter, params: &Params, base_name: &str) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    let mut stored = Vec::new();
    for Spec { name, .. } in adapter.tensors() {
        stored.push((name.clone(), params.known(&name)?));
    }
    if task == Task::SequenceClassification {
        stored.push((format!("{PREFIX}{SCORE}"), params.known(SCORE)?));
    }
    weights::write(&dir.join(WEIGHTS), stored.iter().map(|(n, t)| (n.as_str(), *t)))?;
    let mut text = serde_json::to_string_pretty(&describe(task, adapter, base_name)).unwrap_or_default();
    text.push('\n');
    files::write_atomic(&dir.join(CONFIG), |out| out.write_all(text.as_bytes()))
}

fn describe(task: Task, adapter: &Adapter, base_name: &str) -> Value {
    let config = &adapter.config;
    let whole_names = || adapter.modules.iter().map(|l| l.module.clone()).collect();
    let is_whole = |name: &String| adapter.modules.iter().any(|l| l.module == *name);
    let layers = config.layers.as_ref().map(Layers::to_list);
    // Like PEFT, which writes `all-linear` out; and whole names where it would not look at the blocks.
    let (names, layers) = match &config.target_modules {
        TargetModules::Named(names) if !names.iter().any(is_whole) => (names.clone(), layers),
        _ => (whole_names(), None),
    };
    let alpha = if config.alpha.fract().abs() < f64::MIN_POSITIVE && config.alpha < 1e15 {
        json!(config.alpha as u64)
    } else {
        json!(config.alpha)
    };
    let saved = match task {
        Task::CausalLm => Value::Null,
        Task::SequenceClassification => json!(HEADS),
    };
    json!({
        "peft_type": "LORA",
        "task_type": task.name(),
        "base_model_name_or_path": base_name,
        "revision": null,
        "auto_mapping": null,
        "inference_mode": true,
        "r": config.r,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "use_rslora": config.use_rslora,
        "use_dora": false,
        "bias": "none",
        "fan_in_fan_out": adapter.modules.iter().any(|l| l.layout != Layout::OutIn),
        "init_lora_weights": true,
        "target_modules": names,
        "layers_to_transform": layers,
        "layers_pattern": null,
        "modules_to_save": saved,
        "rank_pattern": {},
        "alpha_pattern": {},
    })
}
