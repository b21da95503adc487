//! What a template writes, up to a bound.

use std::io::{Error as IoError, Result as IoResult, Write};

use crate::error::{Error, Result};

/// What a template may write on its own, in bytes, and how often it may write what it reads.
const OWN: usize = 8 << 20;
const REPEATS: usize = 8;

/// A text that takes only so many bytes.
pub(super) struct Bounded {
    text: Vec<u8>,
    most: usize,
    full: bool,
}

impl Bounded {
    /// For a conversation of `read` bytes.
    pub(super) fn new(read: usize) -> Self {
        Self {
            text: Vec::new(),
            most: OWN.saturating_add(read.saturating_mul(REPEATS)),
            full: false,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.full
    }

    pub(super) fn too_long(&self, name: &str) -> Error {
        Error::Template {
            name: name.to_owned(),
            line: None,
            message: format!("it writes more than {} bytes", self.most),
        }
    }

    pub(super) fn into_text(self, name: &str) -> Result<String> {
        String::from_utf8(self.text).map_err(|_| Error::Template {
            name: name.to_owned(),
            line: None,
            message: "it writes bytes that are no text".to_owned(),
        })
    }
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> IoResult<usize> {
        if self.text.len() + bytes.len() > self.most {
            self.full = true;
            return Err(IoError::other("full"));
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> IoResult<()> {
        Ok(())
    }
}
