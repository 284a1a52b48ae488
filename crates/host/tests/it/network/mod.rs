//! Machines' networking with real packets: a server, its surroundings and machines as network
//! namespaces.

mod egress;
mod forged;
mod frame;
mod isolation;
mod lab;
mod lifecycle;
