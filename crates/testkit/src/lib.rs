//! Perch testkit.
