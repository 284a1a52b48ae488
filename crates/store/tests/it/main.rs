//! The backends against the suite of the contract, and what each adds to it.

#[cfg(test)]
mod full;
#[cfg(test)]
mod remote;
#[cfg(test)]
mod schema;
#[cfg(test)]
mod scoped;
#[cfg(test)]
mod sqlite;
#[cfg(test)]
mod support;
#[cfg(test)]
mod view;
