//! Every shape and format, by columns or by a mapping.

use std::path::Path;

use polars::prelude::{Column, DataFrame, IntoSeries, NamedFrom, ParquetWriter, Series};
use unsay_data::{Columns, Label, Message, read_examples, read_file, write_examples};

use crate::{Folder, columns, is, read, safety};

#[test]
fn standard_shapes_are_recognised_by_their_columns() {
    use Label::{Negative, Positive, Unlabelled};
    let folder = Folder::new();
    let plain = folder.file(
        "a.jsonl",
        "\u{feff}{\"prompt\": \" hi\\r\\n\\nyou? \", \"completion\": \"fine,\\nthanks \", \"x\": 1}\n\n",
    );
    assert_eq!(read(&plain), [is("hi\nyou?", "fine, thanks", Unlabelled)]);
    let labelled = folder.file(
        "b.jsonl",
        "{\"prompt\": \"a\", \"completion\": \"b\", \"label\": true}\n\
         {\"prompt\": \"\", \"completion\": \"c\", \"label\": false}",
    );
    assert_eq!(read(&labelled), [is("a", "b", Positive), is("", "c", Negative)]);
    let pairs = folder.file("c.jsonl", r#"{"rejected": "r", "prompt": "p", "chosen": "c"}"#);
    assert_eq!(read(&pairs), [is("p", "c", Positive), is("p", "r", Negative)]);
    let ids: Vec<_> = read_file(&pairs, None, "s")
        .unwrap()
        .into_iter()
        .map(|e| e.id)
        .collect();
    assert_eq!(ids, ["s:1:chosen", "s:1:rejected"]);
    let messages = folder.file(
        "d.jsonl",
        r#"{"messages": [{"role": "system", "content": "be\nkind"},
            {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#
            .replace('\n', ""),
    );
    assert_eq!(read(&messages), [is("be kind\nq", "a", Unlabelled)]);
    let conversational = folder.file(
        "e.jsonl",
        r#"{"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]}"#,
    );
    assert_eq!(read(&conversational), [is("q", "a", Unlabelled)]);
}

#[test]
fn pairs_of_conversations_share_all_but_their_last_message() {
    use Label::{Negative, Positive};
    let folder = Folder::new();
    let said = |role: &str, content: &str| format!(r#"{{"role": "{role}", "content": "{content}"}}"#);
    let (user, good, bad) = (said("user", "q"), said("assistant", "c"), said("assistant", "r"));
    let pair = [is("q", "c", Positive), is("q", "r", Negative)];
    let rows = [
        format!(r#"{{"chosen": [{user}, {good}], "rejected": [{user}, {bad}]}}"#),
        format!(r#"{{"prompt": "q", "chosen": [{user}, {good}], "rejected": [{user}, {bad}]}}"#),
        format!(r#"{{"prompt": [{user}], "chosen": [{user}, {good}], "rejected": [{user}, {bad}]}}"#),
        r#"{"chosen": "\n\nHuman: q\n\nAssistant: c", "rejected": "\n\nHuman: q\n\nAssistant: r"}"#.to_owned(),
    ];
    for row in &rows {
        let path = folder.file("a.jsonl", row);
        assert_eq!(read(&path), pair, "{row}");
        let examples = read_file(&path, None, "s").unwrap();
        assert_eq!(unsay_data::pair_up(&examples), [(0, 1)]);
        let roles: Vec<&str> = examples[1].messages.iter().map(|m| m.role.as_str()).collect();
        assert_eq!(roles, ["user", "assistant"], "{row}");
    }
    // Beside a prompt a text is a completion, whoever it names.
    let named = folder.file(
        "b.jsonl",
        r#"{"prompt": "q", "chosen": "Assistant: c", "rejected": "Human: r"}"#,
    );
    assert_eq!(
        read(&named),
        [is("q", "Assistant: c", Positive), is("q", "Human: r", Negative)]
    );
    let other = said("user", "p");
    for (row, expected) in [
        (
            format!(r#"{{"chosen": [{user}, {good}], "rejected": [{other}, {bad}]}}"#),
            "conversations that differ from message 1 on",
        ),
        (
            format!(r#"{{"chosen": [{user}, {user}], "rejected": [{user}, {bad}]}}"#),
            "a last message with the role `assistant` in `chosen`",
        ),
        (
            format!(r#"{{"prompt": "p", "chosen": [{user}, {good}], "rejected": [{user}, {bad}]}}"#),
            "what is said in `chosen` before its last message",
        ),
        (
            r#"{"chosen": "c", "rejected": "r"}"#.to_owned(),
            "hint: give the prompt in a column `prompt`",
        ),
    ] {
        let error = read_file(&folder.file("c.jsonl", &row), None, "s")
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn csv_rows_may_span_lines() {
    let folder = Folder::new();
    let path = folder.file(
        "a.csv",
        "\u{feff}prompt,completion,label\r\n\"one\ntwo\",\"yes, \"\"so\"\"\",True\r\nthree,no,0\r\n",
    );
    assert_eq!(
        read(&path),
        [
            is("one\ntwo", "yes, \"so\"", Label::Positive),
            is("three", "no", Label::Negative)
        ]
    );
    let bad = "prompt,completion,label\n\"one\ntwo\",yes,true\nthree,no,perhaps\n";
    assert_eq!(
        folder.refused("b.csv", bad, None),
        "`b.csv:4`: expected true or false in `label`, got `\"perhaps\"`\n\
         hint: say what the values mean with a `columns` mapping"
    );
}

#[test]
fn parquet_is_read_with_its_types() {
    let folder = Folder::new();
    let write = |name: &str, table: Vec<Column>| {
        let height = table[0].len();
        let mut table = DataFrame::new(height, table).unwrap();
        let path = folder.path(name);
        ParquetWriter::new(std::fs::File::create(&path).unwrap())
            .finish(&mut table)
            .unwrap();
        path
    };
    let text = |name: &str, values: &[&str]| Column::from(Series::new(name.into(), values));
    let path = write(
        "a.parquet",
        vec![
            text("prompt", &["a", "b\n\nc"]),
            Column::from(Series::new("extra".into(), &[0.5, 1.5])),
            text("completion", &["x", "y"]),
            Column::from(Series::new("label".into(), &[true, false])),
        ],
    );
    assert_eq!(
        read(&path),
        [is("a", "x", Label::Positive), is("b\nc", "y", Label::Negative)]
    );

    let error = |path: &Path, columns: Option<&Columns>| {
        let error = read_file(path, columns, "train").unwrap_err().to_string();
        error.replace(&format!("{}/", folder.0.path().display()), "")
    };
    let mapped = columns(
        r#"{"prompt": "prompt", "completion": "completion",
            "label": {"column": "extra", "positive": [1]}}"#,
    );
    assert_eq!(
        error(&path, Some(&mapped)),
        "`a.parquet`: expected text, numbers or true and false in the column `extra`, got `Float64`\n\
         hint: write the rows as JSON Lines"
    );
    let nulls = Series::new("completion".into(), &[Some("x"), None]);
    let path = write(
        "b.parquet",
        vec![text("prompt", &["a", "b"]), nulls.into_series().into()],
    );
    assert_eq!(
        error(&path, None),
        "`b.parquet:2`: expected text in `completion`, got null"
    );
    let path = write("c.parquet", vec![text("prompt", &[]), text("completion", &[])]);
    assert_eq!(error(&path, None), "`c.parquet`: expected at least one row, got none");
    let list = Series::new("messages".into(), &[Series::new("".into(), &["a", "b"])]);
    let path = write("d.parquet", vec![list.into()]);
    assert!(error(&path, None).starts_with("`d.parquet`: expected text, numbers or true and false"));
    for content in [&b""[..], b"PAR1", b"PAR1 not really PAR1", &[0; 4096]] {
        let message = folder.refused("e.parquet", content, None);
        assert!(
            message.starts_with("`e.parquet`: expected a Parquet file, got "),
            "{message}"
        );
    }
}

#[test]
fn a_mapping_names_columns_and_label_values() {
    let folder = Folder::new();
    let row =
        |label: &str| format!("{{\"context\": \"c\", \"response\": \"r\", \"category\": \"k\", \"label\": {label}}}\n");
    let path = folder.file("a.jsonl", row("\"Safe\"") + &row("\"Unsafe\""));
    let labels: Vec<_> = read_file(&path, Some(&safety()), "train")
        .unwrap()
        .into_iter()
        .map(|e| (e.id, e.label))
        .collect();
    assert_eq!(
        labels,
        [
            ("train:1".to_owned(), Label::Positive),
            ("train:2".to_owned(), Label::Negative)
        ]
    );
    assert_eq!(
        folder.refused("b.jsonl", row("\"Safe\"") + &row("\"safe\""), Some(&safety())),
        "`b.jsonl:2`: expected one of the mapped labels `Safe`, `Unsafe`, got `safe`"
    );
    let numbers = columns(
        r#"{"prompt": "context", "completion": "response",
            "label": {"column": "label", "positive": [1], "negative": [-1], "unlabelled": [false]}}"#,
    );
    let path = folder.file("c.jsonl", row("1") + &row("-1") + &row("false"));
    let labels: Vec<_> = read_file(&path, Some(&numbers), "t")
        .unwrap()
        .into_iter()
        .map(|e| e.label)
        .collect();
    assert_eq!(labels, [Label::Positive, Label::Negative, Label::Unlabelled]);
}

/// Roles and line breaks of messages are kept beside the text with a turn per line, in every shape that has roles.
#[test]
fn messages_keep_their_roles() {
    let folder = Folder::new();
    let system = r#"{"role": "system", "content": "be\nkind"}"#;
    let user = r#"{"role": "user", "content": " q "}"#;
    let answer = |text: &str| format!(r#"{{"role": "assistant", "content": "{text}"}}"#);
    let (a, b) = (answer("a\\nb"), answer("c"));
    let rows = [
        format!(r#"{{"messages": [{system}, {user}, {a}]}}"#),
        format!(r#"{{"prompt": [{system}, {user}], "completion": [{a}]}}"#),
        format!(r#"{{"prompt": [{system}, {user}], "completion": "a\nb"}}"#),
        format!(r#"{{"prompt": [{system}, {user}], "chosen": [{a}], "rejected": [{b}]}}"#),
    ];
    let earlier = [Message::new("system", "be\nkind"), Message::new("user", " q ")];
    for row in &rows {
        let found = read_file(&folder.file("rows.jsonl", row), None, "train").unwrap();
        assert_eq!(found[0].messages[..2], earlier, "{row}");
        assert_eq!(found[0].messages[2..], [Message::new("assistant", "a\nb")]);
        assert_eq!(found[0].prompt_messages(), earlier);
        assert_eq!(
            (found[0].prompt.as_str(), found[0].completion.as_str()),
            ("be kind\nq", "a b")
        );
        write_examples(folder.path("again.jsonl"), &found).unwrap();
        assert_eq!(read_examples(folder.path("again.jsonl")).unwrap(), found);
    }
    let pair = read_file(&folder.file("rows.jsonl", &rows[3]), None, "train").unwrap();
    assert_eq!(pair[1].messages, pair[0].messages_with("c"));
    // Without roles nothing is added to what is stored.
    let plain = read_file(
        &folder.file("rows.jsonl", r#"{"prompt": "a\nb", "completion": "c"}"#),
        None,
        "train",
    );
    let plain = plain.unwrap();
    assert!(plain[0].messages.is_empty() && plain[0].messages_with("d").is_empty());
    assert!(!serde_json::to_string(&plain[0]).unwrap().contains("messages"));
}
