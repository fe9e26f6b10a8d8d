//! Redis Cluster: where transactions, single commands and locks go, and what their calls return when
//! slots move and masters die. Each test has a cluster of its own.

pub(crate) mod fixture;

mod binding;
mod locks;
mod once;
mod redirections;
mod rights;
mod singles;
