//! Reading the cases.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tch::{Kind, Tensor, no_grad};
use unsay_model::{Decoder, weights};

/// Names another folder of cases.
pub(crate) const FOLDER: &str = "UNSAY_PARITY_DIR";

/// One folder of cases.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) checkpoint: PathBuf,
    /// [B, T] each; labels are none where the case has none.
    pub(crate) ids: Tensor,
    pub(crate) real: Tensor,
    pub(crate) labels: Option<Tensor>,
    pub(crate) expected: HashMap<String, Tensor>,
}

/// Every case, or why it cannot be read.
pub(crate) fn cases() -> Vec<Result<Case, String>> {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = match std::env::var_os(FOLDER) {
        // Tests run in their crate's folder, whoever names a relative one stands in the workspace's.
        Some(named) => {
            let from_workspace = crate_folder.join("../..").join(&named);
            match from_workspace.is_dir() {
                true => from_workspace,
                false => PathBuf::from(named),
            }
        }
        None => crate_folder.join("tests/parity/cases"),
    };
    let entries = fs::read_dir(&root).unwrap_or_else(|e| panic!("`{}`: {e}", root.display()));
    let mut folders: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    folders.sort();
    folders.iter().map(|folder| read(folder)).collect()
}

fn read(folder: &Path) -> Result<Case, String> {
    let name = folder.file_name().unwrap().to_string_lossy().into_owned();
    let fail = |what: &dyn std::fmt::Display| format!("{name}: {what}");
    let text = fs::read(folder.join("inputs.json")).map_err(|e| fail(&format!("inputs.json: {e}")))?;
    let inputs: Value = serde_json::from_slice(&text).map_err(|e| fail(&format!("inputs.json: {e}")))?;
    let ids = matrix(&inputs["input_ids"]).ok_or_else(|| fail(&"inputs.json: `input_ids` is no [B][T]"))?;
    let real = match &inputs["attention_mask"] {
        Value::Null => ids.ones_like(),
        mask => matrix(mask).ok_or_else(|| fail(&"inputs.json: `attention_mask` is no [B][T]"))?,
    };
    let labels = match &inputs["labels"] {
        Value::Null => None,
        labels => Some(matrix(labels).ok_or_else(|| fail(&"inputs.json: `labels` is no [B][T]"))?),
    };
    let shapes = [("attention_mask", Some(&real)), ("labels", labels.as_ref())];
    for (field, given) in shapes {
        if let Some(given) = given.filter(|given| given.size() != ids.size()) {
            let what = format!(
                "inputs.json: `{field}` is {:?}, `input_ids` {:?}",
                given.size(),
                ids.size()
            );
            return Err(fail(&what));
        }
    }
    let expected = weights::read(&folder.join("expected.safetensors")).map_err(|e| fail(&e))?;
    let expected: HashMap<String, Tensor> = expected.into_iter().collect();
    if !expected.contains_key("logits") {
        return Err(fail(&"expected.safetensors: `logits` is missing"));
    }
    Ok(Case {
        checkpoint: checkpoint(folder).ok_or_else(|| fail(&"config.json is missing"))?,
        real: real.to_kind(Kind::Bool),
        name,
        ids,
        labels,
        expected,
    })
}

/// The checkpoint lies beside the inputs or in a folder of its own.
fn checkpoint(folder: &Path) -> Option<PathBuf> {
    let inner = fs::read_dir(folder).ok()?.flatten().map(|e| e.path());
    let mut places = vec![folder.to_owned()];
    places.extend(inner.filter(|p| p.is_dir()));
    places.into_iter().find(|p| p.join("config.json").exists())
}

fn matrix(value: &Value) -> Option<Tensor> {
    let number = |v: &Value| v.as_i64().or_else(|| v.as_bool().map(i64::from));
    let row = |row: &Value| row.as_array()?.iter().map(number).collect::<Option<Vec<i64>>>();
    let rows: Vec<Vec<i64>> = value.as_array()?.iter().map(row).collect::<Option<_>>()?;
    let width = rows.first()?.len();
    if rows.iter().any(|row| row.len() != width) {
        return None;
    }
    Some(Tensor::from_slice(&rows.concat()).view([rows.len() as i64, width as i64]))
}

impl Case {
    /// What is computed in.
    pub(crate) fn kind(&self) -> Kind {
        match self.expected["logits"].kind() {
            Kind::Double => Kind::Double,
            _ => Kind::Float,
        }
    }

    /// Whether any place is none of a real token.
    pub(crate) fn is_padded(&self) -> bool {
        self.real.all().int64_value(&[]) == 0
    }

    /// Whether a label stands right after padding, so that the loss sees what padding computes.
    pub(crate) fn padding_predicts(&self) -> bool {
        let Some(labels) = &self.labels else {
            return false;
        };
        let last = labels.size()[1] - 1;
        let padding = self.real.narrow(1, 0, last).logical_not();
        let labelled = labels.narrow(1, 1, last).ne(-100);
        padding.logical_and(&labelled).any().int64_value(&[]) == 1
    }

    /// The real tokens of each row.
    pub(crate) fn prompts(&self) -> Vec<Vec<u32>> {
        let row = |row| {
            let real = self.ids.get(row).masked_select(&self.real.get(row));
            let real: Vec<i64> = Vec::try_from(real).unwrap();
            real.into_iter().map(|id| id as u32).collect()
        };
        (0..self.ids.size()[0]).map(row).collect()
    }

    /// Numbers [B, T] as they stand in `inputs.json`.
    pub(crate) fn rows(&self, x: &Tensor) -> Vec<Vec<i64>> {
        Vec::try_from(x.to_kind(Kind::Int64)).unwrap()
    }

    /// Logits [B, T, V] without gradients.
    pub(crate) fn logits(&self, model: &Decoder) -> Tensor {
        no_grad(|| self.forward(model))
    }

    pub(crate) fn forward(&self, model: &Decoder) -> Tensor {
        let hidden = model.hidden_with_mask(&self.ids, &self.real).unwrap();
        hidden.linear(&model.output_embedding(), None::<&Tensor>)
    }
}
