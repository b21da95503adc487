//! The tokens with a part in the layout.

/// Which tokens begin, end and fill sequences.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Specials {
    /// Begins a sequence.
    pub(super) bos: Option<u32>,
    /// Whether plain text begins with it.
    pub(super) adds_bos: bool,
    /// Fills batches.
    pub(super) pad: Option<u32>,
    /// Ends plain text.
    pub(super) eos: Option<u32>,
    /// End a completion; in rising order, each once.
    pub(super) ends: Vec<u32>,
}
