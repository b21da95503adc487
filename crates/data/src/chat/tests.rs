use std::path::{Path, PathBuf};

use minijinja::Value;
use minijinja::value::Serde;
use serde::Deserialize;
use serde_json::Map;

use super::{ChatTemplate, LONGEST_TAG, deep_stack};
use crate::error::{Error, Result};
use crate::record::Message;

/// A template with what transformers makes of some conversations: a file of `tests/templates/make.py`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Recorded {
    template: String,
    variables: Map<String, serde_json::Value>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    messages: Vec<serde_json::Value>,
    add_generation_prompt: bool,
    #[serde(default)]
    extra: Map<String, serde_json::Value>,
    /// What it writes; else what it complains about, or that it fails.
    text: Option<String>,
    complaint: Option<String>,
    error: Option<String>,
}

fn template(text: &str) -> Result<ChatTemplate> {
    let mut variables = Map::new();
    variables.insert("bos_token".to_owned(), "<s>".into());
    ChatTemplate::new(vec![("default".to_owned(), text.to_owned())], variables)
}

fn rendered(text: &str, messages: &[Message]) -> Result<String> {
    let template = template(text)?;
    deep_stack(|| template.render(messages, false, &Map::new()))
}

fn failed(text: &str) -> String {
    rendered(text, &[]).unwrap_err().to_string()
}

/// Renders all conversations of all files in a folder: how many templates and conversations, and what differs.
fn compared(folder: &Path) -> (usize, usize, Vec<String>) {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "json"))
        .collect();
    files.sort();
    let (mut n_cases, mut different) = (0, Vec::new());
    for path in &files {
        let recorded: Recorded = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let named = vec![("default".to_owned(), recorded.template)];
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        let template = match ChatTemplate::new(named, recorded.variables) {
            Ok(template) => template,
            Err(e) => {
                different.push(format!("{stem}: {e}"));
                continue;
            }
        };
        for case in recorded.cases {
            n_cases += 1;
            let messages = Value::from(Serde(&case.messages));
            let found = deep_stack(|| template.write(messages, 1000, case.add_generation_prompt, &case.extra));
            let same = match (&found, &case) {
                (Ok(found), Case { text: Some(text), .. }) => found == text,
                (
                    Err(Error::TemplateComplaint { message }),
                    Case {
                        complaint: Some(said), ..
                    },
                ) => message == said,
                (Err(Error::Template { .. }), Case { error: Some(_), .. }) => true,
                _ => false,
            };
            if !same {
                let expected = case.text.or(case.complaint).or(case.error);
                different.push(format!("{stem}, {}:\n  {expected:?}\n  {found:?}", case.name));
            }
        }
    }
    (files.len(), n_cases, different)
}

#[test]
fn own_templates_are_rendered_as_by_transformers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/templates/expected");
    let (n_templates, n_cases, different) = compared(&folder);
    assert!(
        different.is_empty(),
        "{} differ\n{}",
        different.len(),
        different.join("\n")
    );
    assert_eq!((n_templates, n_cases), (11, 495));
}

/// The same for templates that models come with, which are not ours to keep: a folder that `make.py` filled.
#[test]
#[allow(clippy::print_stderr, reason = "says what was compared")]
fn templates_of_models_are_rendered_as_by_transformers() {
    let Some(folder) = std::env::var_os("UNSAY_TEMPLATE_DIR") else {
        eprintln!("nothing compared: UNSAY_TEMPLATE_DIR is not set; tests/templates/real.py fills such a folder");
        return;
    };
    let (n_templates, n_cases, different) = compared(Path::new(&folder));
    assert!(
        different.is_empty(),
        "{} of {n_cases} differ\n{}",
        different.len(),
        different.join("\n")
    );
    assert!(
        n_templates >= 6 && n_cases >= 6 * n_templates,
        "{n_templates} templates, {n_cases} conversations"
    );
    eprintln!("{n_templates} templates, {n_cases} conversations, no difference");
}

#[test]
fn numbers_are_written_as_by_python() {
    let written = "{{ 1e-7 }} {{ 1e22 }} {{ 2.0 }} {{ 3 }} {{ [1e-7] | join }} {{ 1e16 | string }}";
    assert_eq!(rendered(written, &[]).unwrap(), "1e-07 1e+22 2.0 3 1e-07 1e+16");
}

/// Templates ask how many calls a message has that has none.
#[test]
fn what_is_not_there_has_no_length() {
    let message = [Message::new("user", "a")];
    assert_eq!(
        rendered(
            "{{ messages[0].tool_calls | length }}{{ messages[0].tool_calls | count }}{{ messages | length }}",
            &message
        )
        .unwrap(),
        "001"
    );
    assert!(failed("{{ none | length }}").contains("cannot calculate length"));
}

#[test]
fn a_template_that_does_not_parse_is_refused_with_its_line() {
    for (text, expected) in [
        ("a\n{% if %}", "line 2"),
        ("{% for m in messages %}", "line 1"),
        ("{{ 'open }}", "line 1"),
        ("a\nb\n{% include 'other' %}{% nothing %}", "line 3"),
        ("{% generation %}{% endfor %}", "line 1"),
        ("\n\n{{ messages | nothing_of_the_kind }}", "line 3"),
        ("\n{{ messages.missing.further }}", "line 2"),
        ("{{ strftime_now('%Q') }}", "expected a date format, got `%Q`"),
        ("{{ 1 / 0 }}", "unable to calculate"),
        ("{{ open('/etc/passwd') }}", "line 1"),
        (
            "\n{% include 'elsewhere' %}",
            "line 2: `include` cannot stand in a chat template",
        ),
        ("{% extends 'elsewhere' %}", "line 1: `extends` cannot stand"),
        ("a\nb{{ 1 +\n\n nothing.there }}", "line 4"),
        ("{{ 'x'.format_map({}) }}", "no method named"),
    ] {
        let message = failed(text);
        assert!(message.starts_with("chat template `default`"), "{message}");
        assert!(message.contains(expected), "{text}: {message}");
    }
    let deep = format!("{}{}", "{% if true %}".repeat(1000), "{% endif %}".repeat(1000));
    assert!(failed(&deep).contains("recursion"), "{}", failed(&deep));
    let error = ChatTemplate::new(vec![("rag".to_owned(), String::new())], Map::new()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "chat template: expected one named `default`, got `rag`"
    );
}

#[test]
fn a_template_without_end_is_stopped() {
    let loops = "{% for a in range(9999) %}{% for b in range(9999) %}{% set c = a %}{% endfor %}{% endfor %}";
    let message = failed(loops);
    assert!(
        message.contains("it takes more than 2000000 steps: does it loop for ever?"),
        "{message}"
    );
    let recurses = "{% macro again(n) %}{{ again(n + 1) }}{% endmacro %}{{ again(0) }}";
    assert!(
        failed(recurses).contains("recursion limit exceeded"),
        "{}",
        failed(recurses)
    );
    let writes = "{% for a in range(9999) %}{{ 'word' * 9999 }}{% endfor %}";
    assert!(
        failed(writes).contains("it writes more than 8388608 bytes"),
        "{}",
        failed(writes)
    );
    for large in [
        "{{ ('x' * 9999999).replace('x', 'y' * 9999) }}",
        "{{ ('x' * 9999999) | replace('x', 'y' * 9999) }}",
        "{{ range(99999) | join('y' * 9999) }}",
        "{{ ('y' * 9999).join(range(99999)) }}",
        "{{ ('x\n' * 9999) | indent(9999999) }}",
        "{{ [[1]] | tojson(indent=99999999) }}",
        "{{ ([1] * 99999999) | list | length }}",
        "{{ [1] | batch(1000000000, 'x') | list | length }}",
        "{{ [1] | slice(1000000000) | list | length }}",
    ] {
        let message = failed(large);
        assert!(
            message.contains("a text of more than 16777216 bytes"),
            "{large}: {message}"
        );
    }
    assert!(failed("{{ 'x' * 999999999999 }}").contains("repeated string is too large"));
    assert!(failed("{{ range(99999999) }}").contains("range has too many elements"));
    for wide in [
        "{{ '%1000000000d' | format(1) }}",
        "{{ '%-.1000000000f' | format(1) }}",
        "{{ '%*d' | format(1000000000, 1) }}",
        "{{ ['%1000000000d'] | map('format', 1) | list }}",
        "{{ '{:>1000000000}'.format(1) }}",
        "{{ '{:>{}}'.format(1, 1000000000) }}",
    ] {
        assert!(failed(wide).contains("format: a width"), "{wide}: {}", failed(wide));
    }
    let narrow = "{{ '%5d|%.2f|%s: 1000000%%' | format(1, 2, 'x') }} {{ '{}: {:>4}'.format('a', 1) }} {{ '{{}} 10000000'.format() }}";
    assert_eq!(
        rendered(narrow, &[]).unwrap(),
        "    1|2.00|x: 1000000% a:    1 {} 10000000"
    );
    // Values in values, as deep as the steps allow, are dropped again.
    let nests = "{% set n = namespace(x=[]) %}{% for a in range(99999) %}{% set n.x = [n.x] %}{% endfor %}done";
    assert_eq!(rendered(nests, &[]).unwrap(), "done");
    let written = "{% set n = namespace(x=[]) %}{% for a in range(99999) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x }}";
    assert!(rendered(written, &[]).is_ok());
    let json =
        "{% set n = namespace(x=[]) %}{% for a in range(99999) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x|tojson }}";
    assert!(rendered(json, &[]).is_ok());
}

/// The library reads and drops a chain level by level; a stack that is too small would end the whole program.
#[test]
fn a_long_chain_is_read_or_refused_and_overflows_no_stack() {
    let chains: [(&str, &str, &str); 9] = [
        ("a", ".b", ""),
        ("a", "[0]", ""),
        ("a", "()", ""),
        ("a", "|trim", ""),
        ("1", "+1", ""),
        ("1", "**1", ""),
        ("1", " is defined", ""),
        ("", "not ", "1"),
        ("", "-", "1"),
    ];
    for (first, link, last) in chains {
        for n in [LONGEST_TAG / link.len() - 10, 200_000] {
            let text = format!("\n{{{{ {first}{}{last} }}}}", link.repeat(n));
            let made = template(&text);
            let refused = made.as_ref().err().map(ToString::to_string);
            assert_eq!(
                refused.is_some_and(|e| e.contains("line 2: a tag of more than 32768 bytes")),
                n == 200_000,
                "{link}"
            );
        }
    }
    // Looking for the next tag goes over the text once.
    let begun = std::time::Instant::now();
    let many = "{% if true %}{% endif %}".repeat(40_000);
    assert_eq!(rendered(&many, &[]).unwrap(), "");
    assert!(begun.elapsed().as_secs() < 20);
}

/// Steps do not bound what one step makes: a text that doubles would fill any memory in fifty.
#[test]
fn a_template_that_grows_is_stopped() {
    let grows = |step: &str| {
        format!(
            "{{% set n = namespace(x='word', l=['word']) %}}{{% for a in range(99) %}}{step}{{% endfor %}}{{{{ n.x }}}}{{{{ n.l }}}}"
        )
    };
    let mut templates: Vec<String> = [
        "{% set n.x = n.x ~ n.x %}",
        "{% set n.x = n.x + n.x + n.x %}",
        "{% set n.x = n.x * 9 %}",
        "{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}",
        "{% set n.x = n.x.replace('w', 'wwww') %}",
        "{% set n.x = n.x | replace('w', 'wwww') %}",
        "{% set n.x = [n.x, n.x] | join %}",
        "{% set n.x = ''.join([n.x, n.x]) %}",
        "{% set n.x = '%s%s' | format(n.x, n.x) %}",
        "{% set n.x = '{}{}'.format(n.x, n.x) %}",
        "{% set n.x = [n.x, n.x] | string %}",
        "{% set n.x = [n.x, n.x] | tojson %}",
        "{% set n.x = n.x ~ [n.x, n.x] %}",
        "{% set n.l = n.l + n.l %}{% set n.l = n.l | list %}",
        "{% set n.l = [n.l, n.l] %}",
        "{% filter upper %}{% set n.x = n.x ~ n.x %}{{ n.x }}{% endfilter %}",
    ]
    .map(grows)
    .to_vec();
    templates.push("{% macro f(x) %}{{ f(x ~ x) }}{% endmacro %}{{ f('word') }}".to_owned());
    templates.push(
        "{% set n = namespace(x='') %}{% for a in range(9999) %}{% set n.x = n.x ~ 'x' * 999999 %}{% endfor %}"
            .to_owned(),
    );
    let nested = "{% with x = x ~ x %}".repeat(60) + &"{% endwith %}".repeat(60);
    templates.push(format!("{{% set x = 'word' %}}{nested}"));
    let many =
        "{% set n = namespace(l=[]) %}{% for a in range(9999) %}{% set n.l = n.l + ['x' * 999999] %}{% endfor %}";
    templates.push(many.to_owned());
    let raw = "raw ".repeat(9999);
    templates.push(format!(
        "{{% for a in range(9999) %}}{{% set x %}}{raw}{{% endset %}}{{% endfor %}}"
    ));
    // What is shared is small to hold and endless to compare.
    let shared = "{% set n = namespace(l=[1], m=[1]) %}{% for i in range(60) %}{% set n.l = [n.l, n.l] %}\
                  {% set n.m = {'a': n.m, 'b': n.m} %}{% set n.m = [n.m, n.m] %}{% endfor %}";
    for compared in [
        "{{ n.l == n.m }}",
        "{{ n.l in [n.m] }}",
        "{{ [n.l, n.m] | unique | list | length }}",
        "{{ [n.m, n.l] | sort | length }}",
        "{{ {n.l: 1} | length }}",
    ] {
        templates.push(format!("{shared}{compared}"));
    }
    assert_eq!(templates.len(), 26);
    for text in templates {
        let message = failed(&text);
        let stopped = [
            "a text of more than 16777216 bytes",
            "does it grow for ever?",
            "repeated string is too large",
            "recursion limit",
            "it writes more than",
        ];
        assert!(
            stopped.iter().any(|known| message.contains(known)),
            "{text:.200}: {message}"
        );
    }
}

#[test]
fn what_a_template_complains_about_is_its_own_word() {
    let text =
        "{% macro deep() %}{{ raise_exception('no ' ~ messages | length ~ ' messages') }}{% endmacro %}a{{ deep() }}";
    let said = "the chat template refuses the conversation: `no 0 messages`";
    assert_eq!(failed(text), said);
    assert!(!failed("{{ [1] | map('nothing') | list }}").contains("refuses"));
    assert!(failed("{{ messages[::-1] | list }}").contains("the template library gave up"));
}

#[test]
fn tools_take_the_template_for_them() {
    let named = [
        ("default", "plain {{ tools }}"),
        ("tool_use", "with {{ tools | length }}"),
    ];
    let named = named.map(|(name, text)| (name.to_owned(), text.to_owned())).to_vec();
    let template = ChatTemplate::new(named, Map::new()).unwrap();
    let written = |extra: &Map<String, serde_json::Value>| deep_stack(|| template.render(&[], false, extra)).unwrap();
    assert_eq!(written(&Map::new()), "plain None");
    let tools = serde_json::json!([{}, {}]);
    assert_eq!(written(&[("tools".to_owned(), tools)].into_iter().collect()), "with 2");
}

#[test]
fn the_day_is_fixed_until_another_is_set() {
    let today = template("{{ strftime_now('%d %b %Y %H:%M') }}").unwrap();
    let written = |template: &ChatTemplate| deep_stack(|| template.render(&[], false, &Map::new())).unwrap();
    assert_eq!(written(&today), "26 Jul 2024 00:00");
    let later = today.clone().with_now(1_721_952_000 + 86_400);
    assert_eq!(written(&later), "27 Jul 2024 00:00");
    assert_eq!(written(&today), "26 Jul 2024 00:00");
    assert_ne!(today.identity(), later.identity());
    assert!(today.reads_clock());
    let timeless = template("a").unwrap();
    assert_eq!(timeless.identity(), timeless.clone().with_now(0).identity());
    assert_ne!(timeless.identity(), template("b").unwrap().identity());
}
