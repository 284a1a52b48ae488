//! The CLI as it is run, against a platform that is made up.
//!
//! Never a real server, and never a terminal.

#[cfg(test)]
mod certs;
#[cfg(test)]
mod commands;
#[cfg(test)]
mod errors;
#[cfg(test)]
#[path = "../../../deploy/tests/it/fake.rs"]
mod fake;
#[cfg(test)]
#[path = "../../../deploy/tests/it/fake_app.rs"]
mod fake_app;
#[cfg(test)]
#[path = "../../../deploy/tests/it/fake_certs.rs"]
mod fake_certs;
#[cfg(test)]
mod help;
#[cfg(test)]
mod launch;
#[cfg(test)]
mod run;
