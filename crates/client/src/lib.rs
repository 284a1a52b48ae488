//! Perch client.
