//! Real machines, from creation to destruction.

mod bench;
mod life;
mod server;
