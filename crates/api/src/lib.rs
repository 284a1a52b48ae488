//! Perch api.
