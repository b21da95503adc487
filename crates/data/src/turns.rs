//! Text of one turn on one line; turns of a dialogue joined by `\n`.

use crate::record::Message;

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

/// The turns of a text in which each begins, after an empty line, with who says it: `Human:` or `Assistant:`, as in published
/// preference data. Nothing where the text does not begin so.
pub(crate) fn named(text: &str) -> Option<Vec<Message>> {
    const NAMES: [(&str, &str); 2] = [("Human:", "user"), ("Assistant:", "assistant")];
    let begins = |part: &str| NAMES.into_iter().find(|(name, _)| part.starts_with(name));
    let text = text.trim_start();
    begins(text)?;
    let mut messages: Vec<Message> = Vec::new();
    for part in text.split("\n\n") {
        match (begins(part), messages.last_mut()) {
            (Some((name, role)), _) => messages.push(Message::new(role, &part[name.len()..])),
            // A turn may have empty lines of its own.
            (None, Some(open)) => {
                open.content.push_str("\n\n");
                open.content.push_str(part);
            }
            (None, None) => {}
        }
    }
    for message in &mut messages {
        message.content = message.content.trim().to_owned();
    }
    Some(messages)
}

#[cfg(test)]
mod tests {
    use super::{dialogue, joined, named, turn};

    #[test]
    fn turns_with_names_are_messages() {
        let said = named("\n\nHuman: hi\n\nthere\n\nAssistant: Human: is who?\n\nHuman: me\n\nAssistant:").unwrap();
        let said: Vec<(&str, &str)> = said.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect();
        let expected = [
            ("user", "hi\n\nthere"),
            ("assistant", "Human: is who?"),
            ("user", "me"),
            ("assistant", ""),
        ];
        assert_eq!(said, expected);
        assert!(named("hello\n\nHuman: hi").is_none() && named("").is_none());
    }

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
