//! Users that lack a right: from the beginning, taken away while connections lie idle or scopes are
//! open, given back. Each form of the crate, on real servers: which error is returned, that it is
//! true of the data, and that the connections go on.
//!
//! Never: a right that the documents ask for and nothing needs, or the other way round.

mod cluster;
mod documents;
pub(crate) mod fixture;
mod forms;
mod locks;
mod matrix;
mod probes;
mod scopes;
mod sentinel;
