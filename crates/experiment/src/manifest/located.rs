//! Where things stand in a manifest: the position of every key and value, so that an error found long
//! after parsing can still be shown with its line.

use std::borrow::Cow;
use std::collections::HashMap;

use saphyr_parser::{Event, Parser, Span};

/// A place in a file; both counted from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
    /// Length in characters of what is marked, at least 1.
    pub len: usize,
}

/// A path of keys and indices from the root, e.g. `["arms", "cringe", "loss"]`.
pub type Path = Vec<String>;

/// Positions of keys and values by path.
#[derive(Debug, Default)]
pub struct Places {
    keys: HashMap<Path, Place>,
    values: HashMap<Path, Place>,
    /// Keys written twice in one mapping: path, first place, second place.
    pub duplicates: Vec<(Path, Place, Place)>,
}

impl Places {
    /// Reads the positions of `text`. A syntax error is given as message and place.
    pub fn of(text: &str) -> Result<Self, (String, Place)> {
        let mut walk = Walk {
            parser: Parser::new_from_str(text),
            places: Self::default(),
            depth: 0,
        };
        walk.document()?;
        Ok(walk.places)
    }

    /// The place of the key at `path`, or of its value, or of the nearest parent that has one.
    pub fn nearest(&self, path: &[String]) -> Option<Place> {
        (0..=path.len()).rev().find_map(|n| {
            let p = &path[..n];
            self.keys.get(p).or_else(|| self.values.get(p)).copied()
        })
    }

    /// The place of the value at `path` if it is known, else as [`Places::nearest`].
    pub fn value(&self, path: &[String]) -> Option<Place> {
        self.values.get(path).copied().or_else(|| self.nearest(path))
    }
}

/// Deepest nesting that is read; deeper is an error, not a stack overflow.
const MAX_DEPTH: usize = 64;

struct Walk<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    places: Places,
    depth: usize,
}

impl<'a> Walk<'a> {
    fn next(&mut self) -> Result<Option<(Event<'a>, Span)>, (String, Place)> {
        match self.parser.next_event() {
            None => Ok(None),
            Some(Ok(pair)) => Ok(Some(pair)),
            Some(Err(e)) => {
                let m = e.marker();
                let place = Place {
                    line: m.line(),
                    column: m.col() + 1,
                    len: 1,
                };
                Err((e.info().to_owned(), place))
            }
        }
    }

    fn document(&mut self) -> Result<(), (String, Place)> {
        let mut documents = 0;
        while let Some((event, span)) = self.next()? {
            match event {
                Event::StreamStart | Event::StreamEnd | Event::DocumentEnd | Event::Nothing => {}
                Event::DocumentStart(_) => {
                    documents += 1;
                    if documents > 1 {
                        return Err(("a manifest is one document".into(), place(&span)));
                    }
                }
                other => self.node(other, &span, &mut Vec::new())?,
            }
        }
        Ok(())
    }

    fn node(&mut self, event: Event<'a>, span: &Span, path: &mut Path) -> Result<(), (String, Place)> {
        self.places.values.insert(path.clone(), place(span));
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err((format!("nested deeper than {MAX_DEPTH} levels"), place(span)));
        }
        match event {
            Event::MappingStart(..) => self.mapping(path)?,
            Event::SequenceStart(..) => self.sequence(path)?,
            Event::Alias(_) => {
                return Err(("aliases are not used in manifests".into(), place(span)));
            }
            _ => {}
        }
        self.depth -= 1;
        Ok(())
    }

    fn mapping(&mut self, path: &mut Path) -> Result<(), (String, Place)> {
        let mut seen: HashMap<String, Place> = HashMap::new();
        while let Some((event, span)) = self.next()? {
            let key: Cow<'_, str> = match event {
                Event::MappingEnd => return Ok(()),
                Event::Scalar(text, ..) => text,
                _ => return Err(("a key is a plain word".into(), place(&span))),
            };
            let at = place(&span);
            path.push(key.clone().into_owned());
            if let Some(first) = seen.insert(key.into_owned(), at) {
                self.places.duplicates.push((path.clone(), first, at));
            }
            self.places.keys.insert(path.clone(), at);
            if let Some((event, span)) = self.next()? {
                self.node(event, &span, path)?;
            }
            path.pop();
        }
        Ok(())
    }

    fn sequence(&mut self, path: &mut Path) -> Result<(), (String, Place)> {
        let mut index = 0;
        while let Some((event, span)) = self.next()? {
            if matches!(event, Event::SequenceEnd) {
                return Ok(());
            }
            path.push(index.to_string());
            self.node(event, &span, path)?;
            path.pop();
            index += 1;
        }
        Ok(())
    }
}

fn place(span: &Span) -> Place {
    let same_line = span.start.line() == span.end.line();
    let len = if same_line {
        span.end.col().saturating_sub(span.start.col())
    } else {
        1
    };
    Place {
        line: span.start.line(),
        column: span.start.col() + 1,
        len: len.max(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Path {
        text.split('.').map(str::to_owned).collect()
    }

    #[test]
    fn keys_and_values_are_found_in_block_and_flow_form() {
        let text = "a: 1\narms:\n  x: { loss: { cringe: { k: 5 } } }\nseeds: [0, 17]\n";
        let places = Places::of(text).unwrap();
        let at = |p: &str| places.nearest(&path(p)).map(|p| (p.line, p.column, p.len)).unwrap();
        assert_eq!(at("arms.x.loss.cringe.k"), (3, 26, 1));
        assert_eq!(at("seeds.1"), (4, 12, 2));
        assert_eq!(at("arms.x.loss.cringe.missing"), (3, 16, 6), "nearest parent");
    }

    #[test]
    fn duplicates_syntax_errors_aliases_and_depth_are_reported() {
        assert_eq!(Places::of("a: 1\nb: 2\na: 3\n").unwrap().duplicates.len(), 1);
        assert_eq!(Places::of("a: [1, 2\nb: 3\n").unwrap_err().1.line, 2);
        assert!(Places::of("a: &x 1\nb: *x\n").unwrap_err().0.contains("alias"));
        assert!(Places::of(&"[".repeat(1000)).is_err());
        assert!(Places::of("a: 1\n---\nb: 1\n").unwrap_err().0.contains("one document"));
    }
}
