//! Text of a message that looks like a special token, told from the special tokens of the template.
//!
//! Such text gets a mark before and after it, two characters that occur nowhere else in the conversation. The template
//! moves it about like any other text; what comes out between marks is read as plain text.

use tokenizers::{OffsetReferential, OffsetType, Tokenizer as Inner};

/// The two characters around a look-alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Marks {
    open: char,
    close: char,
}

/// A part of a rendered conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// A special token that the template wrote.
    Special(u32),
    /// All else between two of them.
    Text(String),
}

impl Marks {
    /// Two characters for private use that none of the texts has: there are over a hundred thousand, `None` when the texts
    /// have them all.
    pub(crate) fn choose<'a>(texts: impl Iterator<Item = &'a str>) -> Option<Self> {
        let private = |c: &char| matches!(*c, '\u{e000}'..='\u{f8ff}' | '\u{f0000}'..);
        let used: std::collections::HashSet<char> = texts.flat_map(str::chars).filter(private).collect();
        let mut free = ('\u{f0000}'..='\u{ffffd}')
            .chain('\u{e000}'..='\u{f8ff}')
            .filter(|c| !used.contains(c));
        Some(Self {
            open: free.next()?,
            close: free.next()?,
        })
    }

    /// The text with marks around all that `literal` would read as a special token.
    pub(super) fn around(self, literal: &Inner, text: &str) -> String {
        let mut marked = String::with_capacity(text.len());
        let mut done = 0;
        for (_, (start, end)) in specials(literal, text) {
            // A token may take the space around it; the template may want to cut that off.
            let alike = &text[start..end];
            let start = end - alike.trim_start().len();
            let end = start + alike.trim().len();
            marked.push_str(&text[done..start]);
            marked.push(self.open);
            marked.push_str(&text[start..end]);
            marked.push(self.close);
            done = end;
        }
        marked.push_str(&text[done..]);
        marked
    }

    pub(super) fn occur_in(self, text: &str) -> bool {
        text.contains([self.open, self.close])
    }

    /// The text as it is without marks.
    pub(super) fn removed(self, text: &str) -> String {
        text.replace([self.open, self.close], "")
    }

    /// A rendered text cut at the special tokens of the template. A template may cut a message in two, so a mark may stand
    /// alone: only two of them with a look-alike between them count.
    pub(super) fn pieces(self, literal: &Inner, text: &str) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut stretch = String::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (own, tail) = rest.split_at(rest.find(self.open).unwrap_or(rest.len()));
            let own = self.removed(own);
            let mut done = 0;
            for (id, (start, end)) in specials(literal, &own) {
                stretch.push_str(&own[done..start]);
                if !stretch.is_empty() {
                    pieces.push(Piece::Text(std::mem::take(&mut stretch)));
                }
                pieces.push(Piece::Special(id));
                done = end;
            }
            stretch.push_str(&own[done..]);
            let tail = tail.strip_prefix(self.open).unwrap_or(tail);
            rest = tail;
            if let Some((alike, after)) = tail.split_once(self.close) {
                let whole = |found: &[(u32, (usize, usize))]| matches!(found, [(_, (0, end))] if *end == alike.len());
                if whole(&specials(literal, alike)) {
                    stretch.push_str(alike);
                    rest = after;
                }
            }
        }
        if !stretch.is_empty() {
            pieces.push(Piece::Text(stretch));
        }
        pieces
    }
}

/// The special tokens in a text, and the bytes that each takes.
fn specials(literal: &Inner, text: &str) -> Vec<(u32, (usize, usize))> {
    let vocabulary = literal.get_added_vocabulary();
    let found = vocabulary.extract_and_normalize(literal.get_normalizer(), text);
    found
        .get_splits(OffsetReferential::Original, OffsetType::Byte)
        .into_iter()
        .filter_map(|(_, offsets, tokens)| {
            let token = tokens.as_ref()?.first()?;
            let inside = text.is_char_boundary(offsets.0) && text.is_char_boundary(offsets.1);
            // By its id: the text of the token may have the space around it.
            let added = vocabulary.get_added_tokens_decoder().get(&token.id)?;
            (inside && added.special).then_some((token.id, offsets))
        })
        .collect()
}
