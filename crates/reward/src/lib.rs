//! Learned and rule-based judges of completions.
