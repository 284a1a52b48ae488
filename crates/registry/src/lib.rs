//! Perch registry.
