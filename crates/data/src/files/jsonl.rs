//! JSON Lines, plain or gzip-compressed, one object per line.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

use crate::error::{Error, Place, Result};
use crate::shapes::Fields;

/// The longest line that is read, in bytes: a file without line breaks must not fill the memory.
const LONGEST_LINE: u64 = 16 << 20;

/// Calls `each` with the number and text of every line that is not blank.
pub(crate) fn each_line(path: &Path, mut each: impl FnMut(u64, &str) -> Result<()>) -> Result<()> {
    let file = BufReader::new(File::open(path).map_err(Error::io("read", path))?);
    let compressed = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gz"));
    let mut reader: Box<dyn BufRead> = if compressed {
        Box::new(BufReader::new(MultiGzDecoder::new(file)))
    } else {
        Box::new(file)
    };
    let mut bytes = Vec::new();
    for number in 1.. {
        bytes.clear();
        let place = || Place::line(path, number);
        let read = (&mut reader).take(LONGEST_LINE + 1).read_until(b'\n', &mut bytes);
        match read {
            Ok(0) => break,
            Ok(_) => {}
            Err(e) if compressed && e.kind() == ErrorKind::UnexpectedEof => {
                return Err(place().malformed("the rest of the gzip data", "the end of the file"));
            }
            Err(e) if compressed && matches!(e.kind(), ErrorKind::InvalidData | ErrorKind::InvalidInput) => {
                return Err(place().malformed("gzip data", format!("damaged bytes ({e})")));
            }
            Err(e) => return Err(Error::io("read", path)(e)),
        }
        if bytes.len() as u64 > LONGEST_LINE {
            let expected = format!("a line of at most {} MiB", LONGEST_LINE >> 20);
            return Err(place().malformed(expected, "a longer one"));
        }
        let text = std::str::from_utf8(&bytes).map_err(|e| {
            let before = String::from_utf8_lossy(&bytes[..e.valid_up_to()]);
            place().after(&before).malformed("UTF-8 text", bad_byte(&bytes, e))
        })?;
        let text = if number == 1 {
            text.strip_prefix('\u{feff}').unwrap_or(text)
        } else {
            text
        };
        if !text.trim().is_empty() {
            each(number, text)?;
        }
    }
    Ok(())
}

/// What stands in bytes that are no text.
pub(super) fn bad_byte(bytes: &[u8], error: std::str::Utf8Error) -> String {
    let byte = bytes.get(error.valid_up_to()).copied().unwrap_or_default();
    format!("the byte 0x{byte:02x}")
}

/// Reads one line as `T`; the error names the place and what is wrong.
pub(crate) fn parse<'a, T: Deserialize<'a>>(path: &Path, number: u64, text: &'a str, expected: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| {
        let mut place = Place::line(path, number);
        // The library counts bytes from 1, and 0 where it does not know.
        if let Some(before) = e.column().checked_sub(1).and_then(|end| text.get(..end)) {
            place = place.after(before);
        }
        place.malformed(expected, format!("an error: {}", json_message(&e)))
    })
}

/// What the library says without its own line and column.
pub(crate) fn json_message(error: &serde_json::Error) -> String {
    let message = error.to_string();
    match message.rfind(" at line ") {
        Some(end) => message[..end].to_owned(),
        None => message,
    }
}

/// The names in the first row.
pub(super) fn columns(path: &Path) -> Result<(Vec<String>, Place)> {
    let mut first = None;
    // Any error stops reading; this one is thrown away.
    let stop = || Error::NoRows {
        path: path.to_path_buf(),
    };
    let read = each_line(path, |number, text| {
        let object: Object = parse(path, number, text, "a JSON object")?;
        first = Some((object.0.keys().cloned().collect(), Place::line(path, number)));
        Err(stop())
    });
    match first {
        Some(found) => Ok(found),
        None => read.and_then(|()| Err(stop())),
    }
}

/// Calls `each` with every row.
pub(super) fn each_row(path: &Path, each: &mut dyn FnMut(Place, Fields) -> Result<()>) -> Result<()> {
    each_line(path, |number, text| {
        let object: Object = parse(path, number, text, "a JSON object")?;
        each(Place::line(path, number), object.0)
    })
}

/// A JSON object that names nothing twice.
struct Object(Fields);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Names;

        impl<'de> Visitor<'de> for Names {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Object, A::Error> {
                let mut fields = Fields::new();
                while let Some(name) = map.next_key::<String>()? {
                    if fields.contains_key(&name) {
                        return Err(A::Error::custom(format!("`{name}` occurs twice")));
                    }
                    fields.insert(name, map.next_value()?);
                }
                Ok(Object(fields))
            }
        }

        deserializer.deserialize_map(Names)
    }
}
