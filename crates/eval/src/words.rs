//! The words of a reply as ParlAI's dialogue metrics count them.

/// The words of `text`: lower-cased, ASCII punctuation turned into spaces, the articles `a`, `an`
/// and `the` removed, split at white space.
///
/// **Errors** none.
///
/// **Reference** ParlAI, `normalize_answer` in `parlai/core/metrics.py`.
///
/// **Differs from the paper** an article is a whole run of letters and digits, where Python's `\b`
/// also takes combining marks as a boundary; the two agree on text without such marks.
///
/// ```
/// assert_eq!(unsay_eval::words("The cat's on a_mat!"), ["cat", "s", "on", "mat"]);
/// ```
pub fn words(text: &str) -> Vec<String> {
    let text: String = text
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_punctuation() { ' ' } else { c })
        .collect();
    let mut kept = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(first) = rest.chars().next() {
        let is_word = first.is_alphanumeric();
        let end = rest
            .find(|c: char| c.is_alphanumeric() != is_word)
            .unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        kept.push_str(if matches!(run, "a" | "an" | "the") { " " } else { run });
        rest = after;
    }
    kept.split(is_space)
        .filter(|w| !w.is_empty())
        .map(str::to_owned)
        .collect()
}

/// White space as Python's `str.split` sees it: Unicode's, and the four ASCII separators.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_parlai_s() {
        let cases: [(&str, &[&str]); 9] = [
            ("", &[]),
            ("The a AN", &[]),
            ("Hello, World!", &["hello", "world"]),
            ("don't", &["don", "t"]),
            ("theatre another an", &["theatre", "another"]),
            ("well-known\tfact\n", &["well", "known", "fact"]),
            // punctuation goes first, so the article beside it is seen
            ("(the) \"a\" x", &["x"]),
            // a curly apostrophe is no ASCII punctuation, but it ends a word
            ("a\u{2019}s caf\u{e9}", &["\u{2019}s", "caf\u{e9}"]),
            ("one\u{1f}two\u{a0}three", &["one", "two", "three"]),
        ];
        for (text, want) in cases {
            assert_eq!(words(text), want, "{text:?}");
        }
        assert_eq!(cases.len(), 9);
    }
}
