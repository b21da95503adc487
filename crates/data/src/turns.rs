//! Text of one turn on one line; turns of a dialogue joined by `\n`.

/// True for every character that ends a line.
fn breaks_line(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// One turn: trimmed, and with one space in place of every line break and the space around it.
pub(crate) fn turn(text: &str) -> String {
    let parts = text.split(breaks_line).map(str::trim).filter(|p| !p.is_empty());
    parts.collect::<Vec<_>>().join(" ")
}

/// A dialogue whose turns stand on lines of their own: every line trimmed, empty lines left out.
pub(crate) fn dialogue(text: &str) -> String {
    joined(text.split(breaks_line))
}

/// Turns as one text; empty turns are left out.
pub(crate) fn joined<T: AsRef<str>>(turns: impl IntoIterator<Item = T>) -> String {
    let turns = turns.into_iter().map(|t| turn(t.as_ref())).filter(|t| !t.is_empty());
    turns.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::{dialogue, joined, turn};

    #[test]
    fn a_turn_is_one_line() {
        assert_eq!(turn("  a  b \r\n\r\n c\u{2028}d\t"), "a  b c d");
        assert_eq!(turn(" \n "), "");
    }

    #[test]
    fn a_dialogue_has_a_turn_per_line() {
        assert_eq!(dialogue(" hi \r\n\n how are you? \n"), "hi\nhow are you?");
        assert_eq!(joined(["a\nb", " ", "c"]), "a b\nc");
    }
}
