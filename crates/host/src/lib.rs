//! Perch host.
