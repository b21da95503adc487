//! Datasets from files: every shape and format, and every way they can be wrong.

// The allowance for tests does not reach the helpers of a test file.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use polars::prelude::{Column, DataFrame, IntoSeries, NamedFrom, ParquetWriter, Series};
use unsay_data::{Columns, Example, Files, Label, Message, read_examples, read_file, write_examples};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// The message for a file, with its path shortened to its name.
    fn refused(&self, name: &str, content: impl AsRef<[u8]>, columns: Option<&Columns>) -> String {
        let path = self.file(name, content);
        let error = read_file(&path, columns, "train").unwrap_err().to_string();
        error.replace(&format!("{}/", self.0.path().display()), "")
    }
}

fn columns(json: &str) -> Columns {
    serde_json::from_str(json).unwrap()
}

fn safety() -> Columns {
    columns(
        r#"{"prompt": "context", "completion": "response",
            "label": {"column": "label", "positive": ["Safe"], "negative": ["Unsafe"]}}"#,
    )
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn read(path: &Path) -> Vec<(String, String, Label)> {
    let examples = read_file(path, None, "train").unwrap();
    examples
        .into_iter()
        .map(|e| (e.prompt, e.completion, e.label))
        .collect()
}

fn is(prompt: &str, completion: &str, label: Label) -> (String, String, Label) {
    (prompt.to_owned(), completion.to_owned(), label)
}

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

#[test]
fn columns_that_do_not_fit_are_named() {
    let folder = Folder::new();
    let message = folder.refused("a.jsonl", r#"{"contex": "c", "response": "r"}"#, Some(&safety()));
    assert_eq!(
        message,
        "`a.jsonl:1`: expected a column `context`, got `contex`, `response`\n\
         hint: did you mean `contex`?"
    );
    let later = "{\"prompt\": \"c\", \"completion\": \"r\"}\n{\"prompt\": \"c\", \"reply\": \"r\"}";
    assert_eq!(
        folder.refused("b.jsonl", later, None),
        "`b.jsonl:2`: expected a column `completion`, got `prompt`, `reply`"
    );
    assert_eq!(
        folder.refused("c.csv", "question,answer\na,b\n", None),
        "`c.csv:1`: expected columns of a known shape: got the columns `question`, `answer`\n\
         hint: name the columns with a `columns` mapping, or use one of the shapes\n  \
           prompt, completion            unlabelled\n  \
           prompt, completion, label     label is true (positive) or false (negative)\n  \
           prompt, chosen, rejected      a positive and a negative example per row\n  \
           chosen, rejected              the same, as conversations that differ in their last message\n  \
           messages                      a list of role and content; the last is the completion"
    );
    let both = r#"{"prompt": "c", "completion": "r", "messages": []}"#;
    let message = folder.refused("d.jsonl", both, None);
    assert!(
        message.starts_with("`d.jsonl:1`: expected columns of one shape only: got"),
        "{message}"
    );
    assert_eq!(
        folder.refused("e.csv", "prompt,completion,prompt\na,b,c\n", None),
        "`e.csv:1`: expected a name for every column, got `prompt` twice"
    );
    assert_eq!(
        folder.refused(
            "f.jsonl",
            "{\"prompt\": \"a\", \"completion\": \"b\", \"prompt\": \"c\"}",
            None
        ),
        "`f.jsonl:1:43`: expected a JSON object, got an error: `prompt` occurs twice"
    );
    assert_eq!(
        folder.refused("g.txt", "hello", None),
        "`g.txt`: expected a file name that ends in .jsonl, .jsonl.gz, .csv or .parquet"
    );
}

#[test]
fn rows_that_do_not_fit_are_named_with_their_line() {
    let folder = Folder::new();
    let good = "{\"prompt\": \"p\", \"completion\": \"c\"}\n";
    let second = |row: &str| folder.refused("a.jsonl", format!("{good}{row}"), None);
    assert_eq!(
        second(r#"{"prompt": "p", "completion": " \n "}"#),
        "`a.jsonl:2`: expected a completion, got empty text"
    );
    assert_eq!(
        second(r#"{"prompt": "p", "completion": 7}"#),
        "`a.jsonl:2`: expected text in `completion`, got a number"
    );
    assert_eq!(
        second(r#"{"prompt": null, "completion": "c"}"#),
        "`a.jsonl:2`: expected text in `prompt`, got null"
    );
    assert_eq!(
        second(r#"{"prompt": "é", "completion" "c"}"#),
        "`a.jsonl:2:30`: expected a JSON object, got an error: expected `:`"
    );
    assert_eq!(
        second("[1, 2]"),
        "`a.jsonl:2`: expected a JSON object, got an error: invalid type: sequence, expected an object"
    );
    assert_eq!(
        folder.refused("b.csv", "prompt,completion\na,b\nc\n", None),
        "`b.csv:3`: expected 2 cells as in the header, got 1"
    );
    let message = |content: &str| folder.refused("c.jsonl", format!("{{\"messages\": {content}}}"), None);
    assert_eq!(
        message("[]"),
        "`c.jsonl:1`: expected at least one message in `messages`, got none"
    );
    assert_eq!(
        message(r#"[{"role": "user", "content": "a"}]"#),
        "`c.jsonl:1`: expected a last message with the role `assistant` in `messages`, got role `user`"
    );
    assert_eq!(
        message(r#"[{"role": "gpt", "content": "a"}]"#),
        "`c.jsonl:1`: expected the role `system`, `user` or `assistant` in `messages`, got `gpt`"
    );
    assert_eq!(
        message(r#"[{"from": "gpt", "value": "a"}]"#),
        "`c.jsonl:1`: expected a list of messages with `role` and `content` in `messages`, \
         got {\"from\":\"gpt\",\"value\":\"a\"}"
    );
}

#[test]
fn damaged_bytes_are_named_with_their_place() {
    let folder = Folder::new();
    let mut bytes = b"{\"prompt\": \"p\", \"completion\": \"c\"}\n{\"prompt\": \"".to_vec();
    bytes.extend("é".as_bytes());
    bytes.extend(b"\xff\"}\n");
    assert_eq!(
        folder.refused("a.jsonl", &bytes, None),
        "`a.jsonl:2:14`: expected UTF-8 text, got the byte 0xff"
    );
    assert_eq!(
        folder.refused("b.csv", b"prompt,completion\na,b\xfe\n", None),
        "`b.csv:2`: expected UTF-8 text, got the byte 0xfe"
    );
    for (name, content) in [
        ("c.jsonl", ""),
        ("c.jsonl", "\n \n"),
        ("c.csv", ""),
        ("c.csv", "prompt,completion\n"),
    ] {
        let expected = format!("`{name}`: expected at least one row, got none");
        assert_eq!(folder.refused(name, content, None), expected);
    }
    let missing = read_file(&folder.path("none.jsonl"), None, "train")
        .unwrap_err()
        .to_string();
    assert!(missing.starts_with("could not read `"), "{missing}");
}

#[test]
fn compressed_files_are_whole_or_refused() {
    let folder = Folder::new();
    let row = |i: usize| format!("{{\"prompt\": \"{i} {}\", \"completion\": \"c\"}}\n", i * i * 7919);
    let text: String = (0..2000).map(row).collect();
    let whole = gzip(&text);
    assert_eq!(read(&folder.file("a.jsonl.gz", &whole)).len(), 2000);
    let twice = [whole.as_slice(), &whole].concat();
    assert_eq!(read(&folder.file("b.jsonl.gz", &twice)).len(), 4000);
    let truncated = folder.refused("c.jsonl.gz", &whole[..whole.len() / 2], None);
    assert!(
        truncated.ends_with("expected the rest of the gzip data, got the end of the file"),
        "{truncated}"
    );
    let plain = folder.refused("d.jsonl.gz", &text, None);
    assert!(
        plain.starts_with("`d.jsonl.gz:1`: expected gzip data, got damaged bytes"),
        "{plain}"
    );
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle..middle + 20].fill(0xaa);
    let damaged = folder.refused("e.jsonl.gz", &damaged, None);
    assert!(damaged.starts_with("`e.jsonl.gz:"), "{damaged}");
    let junk = folder.refused("f.jsonl.gz", [whole.as_slice(), b"junk"].concat(), None);
    assert!(junk.starts_with("`f.jsonl.gz:"), "{junk}");
    let empty = folder.refused("g.jsonl.gz", "", None);
    assert!(empty.starts_with("`g.jsonl.gz"), "{empty}");
}

#[test]
fn a_line_without_end_does_not_fill_the_memory() {
    let folder = Folder::new();
    let path = folder.path("a.jsonl.gz");
    let mut encoder = GzEncoder::new(std::fs::File::create(&path).unwrap(), Compression::fast());
    for _ in 0..40 {
        encoder.write_all(&vec![b' '; 1 << 20]).unwrap();
    }
    encoder.finish().unwrap();
    let error = read_file(&path, None, "train").unwrap_err().to_string();
    assert!(
        error.ends_with("expected a line of at most 16 MiB, got a longer one"),
        "{error}"
    );
}

#[test]
fn three_files_are_a_dataset_with_a_fingerprint() {
    let folder = Folder::new();
    let row = |p: &str| format!("{{\"prompt\": \"{p}\", \"completion\": \"c\"}}\n");
    let files = Files {
        train: folder.file("a.jsonl", row("x") + &row("y")),
        valid: folder.file("b.jsonl", row("y")),
        test: folder.file("c.jsonl", row("z")),
        columns: None,
    };
    let splits = files.read().unwrap();
    let seen = |examples: &[Example]| -> Vec<bool> { examples.iter().map(|e| e.seen_prompt).collect() };
    assert_eq!(seen(&splits.train), [true, true]);
    assert_eq!(seen(&splits.valid), [true]);
    assert_eq!(seen(&splits.test), [false]);
    let before = files.fingerprint().unwrap();
    assert_eq!(files.fingerprint().unwrap(), before);
    folder.file("c.jsonl", row("x"));
    assert_ne!(files.fingerprint().unwrap(), before);
    folder.file("c.jsonl", row("z"));
    assert_eq!(files.fingerprint().unwrap(), before);
    let columns = Some(columns(r#"{"prompt": "prompt", "completion": "completion"}"#));
    assert_ne!(Files { columns, ..files }.fingerprint().unwrap(), before);
}

#[test]
fn the_normal_form_comes_back() {
    let folder = Folder::new();
    let path = folder.path("examples.jsonl");
    let example = |id: &str, completion: &str, label| Example {
        id: id.into(),
        prompt: "a\n\"b\" \u{1F600}".into(),
        completion: completion.into(),
        label,
        seen_prompt: id == "1",
        messages: Vec::new(),
    };
    let examples = [
        example("1", "x", Label::Positive),
        example("2", "<|eos|>", Label::Unlabelled),
    ];
    write_examples(&path, &examples).unwrap();
    assert_eq!(read_examples(&path).unwrap(), examples);
    assert!(write_examples(folder.path("empty.jsonl"), &[]).is_err());
    assert!(!folder.path("empty.jsonl").exists());

    let refused = |content: &str| {
        let path = folder.file("bad.jsonl", content);
        let error = read_examples(path).unwrap_err().to_string();
        error.replace(&format!("{}/", folder.0.path().display()), "")
    };
    assert_eq!(refused("\n"), "`bad.jsonl`: expected at least one row, got none");
    assert_eq!(
        refused(r#"{"id": "1", "prompt": "", "completion": "x", "label": "good", "seen_prompt": true}"#),
        "`bad.jsonl:1:60`: expected an example, got an error: unknown variant `good`, \
         expected one of `positive`, `negative`, `unlabelled`"
    );
    assert_eq!(
        refused(r#"{"id": "1", "prompt": "", "completion": " ", "label": "positive", "seen_prompt": true}"#),
        "`bad.jsonl:1`: expected a completion, got empty text"
    );
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
