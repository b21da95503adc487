//! Every way files can be wrong.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use unsay_data::read_file;

use crate::{Folder, gzip, read, safety};

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
