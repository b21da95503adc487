//! Equality with PEFT on the committed cases.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tch::no_grad;
use unsay_model::{Layers, LoraConfig, TargetModules, weights};

use crate::cases::{CASES, Case, Model, bits, case, cases, loss};
use crate::common::random;

#[test]
fn logits_loss_and_gradients_equal_those_of_peft() {
    let (mut compared, mut gradients) = (0, 0);
    for case in cases() {
        let mut model = case.model();
        case.assert_equal("base_logits", &model.logits(&case));
        model.load_adapter(&case.adapter()).unwrap();
        let logits = model.logits(&case);
        case.assert_equal("logits", &logits);
        let loss = loss(&case, &logits);
        case.assert_equal("loss", &loss);
        loss.backward();
        for (name, _) in case.expected.iter().filter(|(n, _)| n.starts_with("grad.")) {
            let ours = name.trim_start_matches("grad.");
            let found = model.params().get(ours);
            let found = found.or_else(|| model.params().get(ours.trim_start_matches("base_model.model.")));
            case.assert_equal(name, &found.unwrap().grad());
            gradients += 1;
        }
        let trained = model.params().trainable().count();
        assert_eq!(trained, case.expected.keys().filter(|n| n.starts_with("grad.")).count());
        let frozen = model.params().iter().filter(|(_, t)| !t.requires_grad());
        assert!(frozen.map(|(_, t)| t.grad()).all(|g| !g.defined()), "{}", case.name);
        compared += 1;
    }
    assert_eq!((compared, gradients), (CASES, GRADIENTS));
}

/// Two a linear map, and the score of a classifier.
const GRADIENTS: usize = 4 + 28 + 8 + 16 + 4 + 29 + 9 + 8 + 16;

#[test]
fn merged_weights_equal_those_of_peft() {
    let mut compared = 0;
    for case in cases() {
        let mut model = case.model();
        let before = model.params().len();
        model.load_adapter(&case.adapter()).unwrap();
        model.merge_adapter().unwrap();
        case.assert_equal("merged_logits", &model.logits(&case));
        case.assert_equal("logits", &model.logits(&case));
        assert!(model.adapter().is_none() && model.params().len() == before);
        assert_eq!(model.params().trainable().count(), before);
        let error = model.merge_adapter().unwrap_err().to_string();
        assert_eq!(error, "adapter: expected a model with an adapter, got one without");
        compared += 1;
    }
    assert_eq!(compared, CASES);
}

#[test]
fn the_adapter_off_is_the_base() {
    let mut compared = 0;
    for case in cases() {
        let mut model = case.model();
        let Model::Decoder(base) = &mut model else { continue };
        let before = crate::cases::logits(base, &case.ids).detach();
        base.load_adapter(&case.adapter()).unwrap();
        let on = crate::cases::logits(base, &case.ids);
        let off = base
            .without_adapter(|d| d.hidden(&case.ids))
            .unwrap()
            .linear(&base.output_embedding().detach(), None::<&tch::Tensor>);
        assert_eq!(off, before, "{}", case.name);
        assert!(!off.requires_grad() && on.requires_grad());
        assert_eq!(crate::cases::logits(base, &case.ids), on);
        compared += 1;
    }
    assert_eq!(compared, CASES - 2);
}

#[test]
fn what_is_written_is_read_back_and_says_what_peft_says() {
    let mut compared = 0;
    for case in cases() {
        let mut model = case.model();
        let notes = model.load_adapter(&case.adapter()).unwrap();
        let dropout = "`lora_dropout` 0.25 has no effect: nothing is dropped here";
        let noted = if case.name == "llama_rslora" {
            vec![dropout]
        } else {
            vec![]
        };
        assert_eq!(notes, noted, "{}", case.name);
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("new").join("adapter");
        model.save_adapter(&dir).unwrap();
        model.save_adapter(&dir).unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 2);

        let read = |dir: &std::path::Path| -> Value {
            serde_json::from_slice(&fs::read(dir.join("adapter_config.json")).unwrap()).unwrap()
        };
        let (ours, theirs) = (read(&dir), read(&case.adapter()));
        let mut same = 0;
        for (name, value) in ours.as_object().unwrap() {
            let told: &[&str] = &["base_model_name_or_path", "lora_dropout", "target_modules"];
            if !told.contains(&name.as_str()) {
                assert_eq!(value, &theirs[name], "{}: {name}", case.name);
                same += 1;
            }
        }
        assert_eq!(same, 17, "{}", case.name);
        assert_eq!(ours["base_model_name_or_path"], "some/base");
        let sorted = |v: &Value| {
            let mut names: Vec<String> = serde_json::from_value(v["target_modules"].clone()).unwrap();
            names.sort();
            names
        };
        assert_eq!(sorted(&ours), sorted(&theirs), "{}", case.name);

        let mut back = case.model();
        assert!(back.load_adapter(&dir).unwrap().is_empty());
        assert_eq!(bits(back.params()), bits(model.params()));
        assert_eq!(back.adapter(), model.adapter());
        case.assert_equal("logits", &back.logits(&case));
        compared += 1;
    }
    assert_eq!(compared, CASES);
}

/// Adapters of this crate's own making, with what it computes, below the target folder: `check_adapter.py` compares them
/// with PEFT.
#[test]
fn adapters_are_laid_out_for_peft_to_read() {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("adapters");
    let settings_for = |case: &Case| {
        let names = match case.name.split('_').next() {
            Some("gpt2") => ["c_fc", "attn.c_proj"],
            Some("phi3") => ["gate_up_proj", "self_attn.qkv_proj"],
            _ => ["up_proj", "self_attn.k_proj"],
        };
        let named = TargetModules::Named(names.map(str::to_owned).into());
        [
            ("all_linear", TargetModules::AllLinear, None),
            ("named", named.clone(), None),
            ("blocks", named, Some(Layers::Range { first: 1, last: 1 })),
            (
                "all_linear_blocks",
                TargetModules::AllLinear,
                Some(Layers::List(vec![0])),
            ),
        ]
    };
    let mut written = 0;
    for case in cases() {
        for (i, (name, target_modules, layers)) in settings_for(&case).into_iter().enumerate() {
            let settings = LoraConfig {
                r: i + 1,
                alpha: 1.5,
                target_modules,
                layers,
                use_rslora: i % 2 == 1,
            };
            let mut model = case.model();
            model.add_lora(&settings, 5).unwrap();
            for (seed, param) in (90..).zip(model.params().trainable()) {
                let values = random(&param.value().size(), seed) * 0.7;
                no_grad(|| param.value().shallow_clone().copy_(&values));
            }
            let dir = root.join(&case.name).join(name);
            model.save_adapter(&dir).unwrap();
            let logits = model.logits(&case).detach();
            weights::write(&dir.join("logits.safetensors"), [("logits", &logits)]).unwrap();
            let mut back = case.model();
            assert!(back.load_adapter(&dir).unwrap().is_empty());
            assert_eq!(back.logits(&case).detach(), logits, "{}/{name}", case.name);
            written += 1;
        }
    }
    assert_eq!(written, 4 * CASES);
}

#[test]
fn settings_are_those_of_the_folder() {
    let mut model = case("llama_layers").model();
    model.load_adapter(&case("llama_layers").adapter()).unwrap();
    let Some(LoraConfig {
        target_modules: TargetModules::Named(names),
        ..
    }) = model.adapter()
    else {
        panic!("{:?}", model.adapter());
    };
    let mut names = names.clone();
    names.sort();
    assert_eq!(names, ["q_proj", "v_proj"]);
    let expected = LoraConfig {
        r: 2,
        alpha: 3.0,
        target_modules: model.adapter().unwrap().target_modules.clone(),
        layers: Some(Layers::List(vec![1])),
        use_rslora: false,
    };
    assert_eq!(model.adapter(), Some(&expected));
}
