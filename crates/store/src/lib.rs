//! Perch store.
