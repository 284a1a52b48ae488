//! Perch deploy.
