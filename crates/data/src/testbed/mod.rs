//! Dialogue worlds made by the project, each with an exact oracle.
