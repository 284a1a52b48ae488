//! The registry against real clients: raw HTTP, skopeo, buildah and the platform's own puller.
//!
//! Never reaches beyond loopback.

mod cloud;
mod conformance;
mod distribution;
mod images;
mod restart;
mod storage;
