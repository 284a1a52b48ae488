//! Perch scan.
