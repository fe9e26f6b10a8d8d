//! Users that lack a right: from the beginning, removed while connections are idle or scopes are open,
//! granted again. For each form of the crate: which error is returned, that it is true of the data, and
//! that the connections can be used further.
//!
//! Each right that the documents name is needed, and no other is.

mod cluster;
mod documents;
pub(crate) mod fixture;
mod forms;
mod locks;
mod matrix;
mod probes;
mod scopes;
mod sentinel;
