//! Manifests, plans, composition and the unsay binary.
