//! DiaSafety: replies to a remark, judged safe or unsafe in its context.

use std::path::Path;

use serde::Deserialize;

use super::{Converted, Dataset, File, Form, Upstream};
use crate::error::{Error, Place, Result};
use crate::files::jsonl;
use crate::record::{Example, Label, Splits};
use crate::turns;

/// Rows with an empty response (2 in train, 1 in test) are left out and counted.
pub(super) static DATASET: Dataset = Dataset {
    name: "diasafety",
    what: "11,209 pairs of a context and a response, labelled safe or unsafe in that context",
    source: "git repository thu-coai/DiaSafety, folder DiaSafety_dataset",
    licence: "Apache-2.0",
    content_warning: Some("offensive text, biased statements, talk of self-harm and medical topics"),
    version: "5106a041b1c7",
    converter: 1,
    upstream: Upstream::Git {
        url: "https://github.com/thu-coai/DiaSafety",
        commit: "5106a041b1c7e36f30e02a97c44897a7f2057278",
        folder: "DiaSafety_dataset",
    },
    files: &[
        File {
            name: "train.json",
            sha256: None,
        },
        File {
            name: "val.json",
            sha256: None,
        },
        File {
            name: "test.json",
            sha256: None,
        },
    ],
    mirror: &[
        File {
            name: "train.jsonl.gz",
            sha256: Some("f597ef82a2c36f0f646b47e38e95fe7c7fc5d595e27aed73b0780d183e4171fb"),
        },
        File {
            name: "valid.jsonl.gz",
            sha256: Some("3595b2c791d9f63c6b11d6578f3513ba09d598191ff26eb011dbb34e6f35a175"),
        },
        File {
            name: "test.jsonl.gz",
            sha256: Some("3a41afca10907bdcb516e30c2a8ddb899225de3ecb0f2d68647dfc1fdd5ca012"),
        },
    ],
    read,
};

/// A row; further fields (`category`, `context_in_train`) are not used.
#[derive(Deserialize)]
struct Row {
    context: String,
    response: String,
    label: Judgement,
}

#[derive(Clone, Copy, Deserialize)]
enum Judgement {
    Safe,
    Unsafe,
}

fn read(folder: &Path, form: Form) -> Result<Converted> {
    let files = match form {
        Form::Mirror => DATASET.mirror,
        Form::Published => DATASET.files,
    };
    let mut dropped = 0;
    let mut splits = ["train", "valid", "test"].iter().zip(files).map(|(split, file)| {
        let path = folder.join(file.name);
        let rows = match form {
            Form::Mirror => mirrored(&path),
            Form::Published => published(&path),
        }?;
        let mut examples = Vec::with_capacity(rows.len());
        for (number, row) in (1..).zip(rows) {
            let completion = turns::turn(&row.response);
            if completion.is_empty() {
                dropped += 1;
                continue;
            }
            examples.push(Example {
                id: format!("{split}:{number}"),
                prompt: turns::turn(&row.context),
                completion,
                label: match row.label {
                    Judgement::Safe => Label::Positive,
                    Judgement::Unsafe => Label::Negative,
                },
                seen_prompt: false,
                messages: Vec::new(),
            });
        }
        if examples.is_empty() {
            return Err(Error::NoRows { path });
        }
        Ok(examples)
    });
    let mut next = || splits.next().unwrap_or_else(|| Ok(Vec::new()));
    let (train, valid, test) = (next()?, next()?, next()?);
    drop(splits);
    Ok(Converted {
        splits: Splits::new(train, valid, test),
        dropped,
    })
}

/// JSON Lines, a row per line.
fn mirrored(path: &Path) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    jsonl::each_line(path, |number, text| {
        rows.push(jsonl::parse(
            path,
            number,
            text,
            "a row with context, response and label",
        )?);
        Ok(())
    })?;
    Ok(rows)
}

/// One JSON array.
fn published(path: &Path) -> Result<Vec<Row>> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    serde_json::from_slice(&bytes).map_err(|e| {
        let mut place = Place::line(path, e.line() as u64);
        place.column = u32::try_from(e.column()).ok().filter(|column| *column > 0);
        let got = format!("an error: {}", jsonl::json_message(&e));
        place.malformed("a list of rows with context, response and label", got)
    })
}
