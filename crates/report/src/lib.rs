//! Result tables, statistics and figures.
