//! Datasets, testbed, tokenizers and batches of plain arrays.
