//! Perch dns.
