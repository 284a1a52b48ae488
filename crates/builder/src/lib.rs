//! Perch builder.
