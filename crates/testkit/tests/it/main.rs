//! Whole clouds: a real `perchd`, real machines, requests through the real edge.

mod bad_input;
mod edge;
mod launch;
mod machines;
mod security;
mod survival;
