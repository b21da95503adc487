//! Decoder architectures, heads, sampling and weights on disk.
