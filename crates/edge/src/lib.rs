//! Perch edge.
