//! The builder with its real tools: cages, layers, a registry.
//!
//! Never needs the internet, but for the tests that say so and want `PERCH_TEST_LONG=1`.

mod bench;
mod bootstrap;
mod builds;
mod walls;
