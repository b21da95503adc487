//! Equality with transformers, case by case: logits, loss, gradients, greedy decoding, and again after export.
//!
//! Cases lie in `tests/parity/cases`, written by `make.py`, or in the folder that `UNSAY_PARITY_DIR` names: one
//! folder a case, with the checkpoint, `inputs.json` (`input_ids`, `attention_mask`, `labels`; -100 is off) and
//! `expected.safetensors` (`logits`, and where present `loss`, `grad.<parameter>`, `greedy`). Positions count
//! real tokens. The kind of the expected logits decides the kind of the computation and the tolerance.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod case;
mod compare;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use case::{Case, FOLDER, cases};
use compare::{Way, mistakes, rough_mistakes};
use tch::{Device, Kind};
use unsay_model::{Decoder, Generation, Sampling, weights};

/// How many cases this project has.
const CASES: usize = 30;

/// Runs a check over all cases, in order; every failure is named.
fn for_each(check: impl Fn(&Case) -> Result<String, String>) -> usize {
    tch::set_num_threads(1);
    let cases = cases();
    assert!(!cases.is_empty(), "no cases in the folder of parity cases");
    let (mut failed, mut notes) = (Vec::new(), BTreeMap::new());
    for case in &cases {
        let checked = case.as_ref().map_err(Clone::clone).and_then(|case| {
            let checked = catch_unwind(AssertUnwindSafe(|| check(case)));
            checked.unwrap_or_else(|_| Err(format!("{}: cannot be computed; the reason is above", case.name)))
        });
        match checked {
            Ok(note) => *notes.entry(note).or_insert(0) += 1,
            Err(what) => failed.push(what),
        }
    }
    report(&format!("{} cases compared: {notes:?}", cases.len() - failed.len()));
    assert!(
        failed.is_empty(),
        "{} of {} cases fail:\n{}",
        failed.len(),
        cases.len(),
        failed.join("\n")
    );
    cases.len()
}

#[allow(
    clippy::print_stdout,
    reason = "how many cases were compared is what the reader asks for"
)]
fn report(line: &str) {
    println!("{line}");
}

#[test]
fn parity_of_logits_loss_and_gradients() {
    let compared = for_each(|case| {
        let own = Decoder::load_kind(&case.checkpoint, Device::Cpu, case.kind());
        let own = own.map_err(|e| format!("{}: {e}", case.name))?;
        let mut first = None;
        for way in Way::all(case, own.config()) {
            let model = way.model(case).map_err(|e| format!("{}: {e}", case.name))?;
            let found = mistakes(case, &model, way);
            if found.is_empty() {
                let rough = rough_mistakes(case, &own);
                if !rough.is_empty() {
                    let what = format!("agrees {way}, not as this project computes: {}", rough.join("; "));
                    return Err(format!("{}: {what}", case.name));
                }
                return Ok(way.to_string());
            }
            first.get_or_insert(found);
        }
        Err(format!("{}: {}", case.name, first.unwrap_or_default().join("; ")))
    });
    let own = std::env::var_os(FOLDER).is_none();
    assert!(compared > 0 && (!own || compared == CASES), "{compared} cases");
}

#[test]
fn parity_of_greedy_decoding() {
    for_each(|case| {
        let Some(expected) = case.expected.get("greedy") else {
            return Ok("without greedy tokens".to_owned());
        };
        let expected: Vec<Vec<i64>> = Vec::try_from(expected.to_kind(Kind::Int64)).unwrap();
        let model = Decoder::load_kind(&case.checkpoint, Device::Cpu, case.kind())
            .map_err(|e| format!("{}: {e}", case.name))?;
        // Something must end a completion: a token that none of them should meet.
        let vocab = model.config().vocab_size as u32;
        let end = (0..vocab).find(|&id| expected.iter().flatten().all(|&e| e != i64::from(id)));
        let end = end.ok_or("every token occurs")?;
        let sampling = Sampling::greedy(expected[0].len());
        let prompts = case.prompts();
        let request = Generation::new(&model, &sampling, std::slice::from_ref(&end));
        let found = request.run(&prompts).map_err(|e| e.to_string())?;
        for (row, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let found: Vec<i64> = found.ids.iter().map(|&id| i64::from(id)).collect();
            if found != *expected {
                return Err(format!(
                    "{}: row {row}: expected {expected:?}, got {found:?}",
                    case.name
                ));
            }
        }
        assert_eq!(found.len(), expected.len());
        Ok("token for token".to_owned())
    });
}

#[test]
fn parity_survives_export() {
    for_each(|case| {
        let folder = tempfile::tempdir().unwrap();
        let model = Decoder::load_kind(&case.checkpoint, Device::Cpu, case.kind());
        let model = model.map_err(|e| format!("{}: {e}", case.name))?;
        let before = case.logits(&model);
        model.save(folder.path()).unwrap();
        let again = Decoder::load(folder.path(), Device::Cpu).map_err(|e| format!("{}: {e}", case.name))?;
        if model.config() != again.config() || !case.logits(&again).equal(&before) {
            return Err(format!("{}: another model after export", case.name));
        }
        for kind in [Kind::BFloat16, Kind::Half, Kind::Float] {
            if again.save_as(folder.path(), kind).is_err() {
                return Err(format!("{}: cannot be stored as {kind:?}", case.name));
            }
            keep(case, folder.path(), kind);
            let narrow = Decoder::load(folder.path(), Device::Cpu).map_err(|e| format!("{}: {e}", case.name))?;
            for ((name, wide), (_, narrow)) in again.params().iter().zip(narrow.params().iter()) {
                if !wide.detach().to_kind(kind).equal(&narrow.detach().to_kind(kind)) {
                    return Err(format!("{}: `{name}` is another one as {kind:?}", case.name));
                }
            }
        }
        Ok("bit for bit".to_owned())
    });
}

/// Copies an export for `check_export.py`, where a folder is named for it.
fn keep(case: &Case, export: &Path, kind: Kind) {
    let Some(root) = std::env::var_os("UNSAY_EXPORT_DIR") else {
        return;
    };
    let folder = Path::new(&root).join(format!("{}_stored_{kind:?}", case.name));
    std::fs::create_dir_all(&folder).unwrap();
    for file in std::fs::read_dir(export).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.join(file.file_name())).unwrap();
    }
    let inputs = serde_json::json!({
        "input_ids": case.rows(&case.ids),
        "attention_mask": case.rows(&case.real),
    });
    std::fs::write(folder.join("inputs.json"), inputs.to_string()).unwrap();
    let model = Decoder::load(&folder, Device::Cpu).unwrap();
    let logits = case.logits(&model);
    weights::write(&folder.join("logits.safetensors"), [("logits", &logits)]).unwrap();
}

#[test]
fn parity_would_be_noticed_if_lost() {
    let case = cases().into_iter().flatten().next().unwrap();
    let model = Decoder::load_kind(&case.checkpoint, Device::Cpu, case.kind()).unwrap();
    // All of them: new models have biases of 0, and norms undo what comes before them.
    tch::no_grad(|| {
        for (_, weight) in model.params().iter() {
            let _ = weight.shallow_clone().g_mul_scalar_(1.001);
        }
    });
    let found: Vec<Vec<String>> = Way::all(&case, model.config())
        .into_iter()
        .map(|way| mistakes(&case, &model, way))
        .collect();
    assert!(found.iter().all(|m| !m.is_empty()), "{found:?}");
}
