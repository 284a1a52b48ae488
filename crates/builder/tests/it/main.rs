//! The builder with its real tools: cages, layers, a registry.
//!
//! Never needs the internet, but for the tests that say so and want `PERCH_TEST_LONG=1`.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says where")]

mod bench;
mod bootstrap;
mod builds;
mod walls;
