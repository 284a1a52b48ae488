//! Real machines, from creation to destruction.
#![expect(clippy::unwrap_used, clippy::panic, reason = "in a test a fault is a failure")]

mod acts;
mod adoption;
mod containers;
mod ends;
mod faults;
mod full;
mod images;
mod inside;
mod kills;
mod layers;
mod life;
mod policies;
mod server;
mod suspend;
mod volumes;
