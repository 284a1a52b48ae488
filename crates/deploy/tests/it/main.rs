//! Deploys against a platform that is made up.
//!
//! Never a real machine.

#[cfg(test)]
mod apply;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod fake_app;
#[cfg(test)]
mod fake_certs;
#[cfg(test)]
mod plans;
#[cfg(test)]
mod verdicts;
