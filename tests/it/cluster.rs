//! Redis Cluster: the node of each transaction, command and lock, and what calls return when slots move and
//! masters die. Each test has a cluster of its own.

pub(crate) mod fixture;

mod binding;
mod locks;
mod once;
mod redirections;
mod rights;
mod scripts;
mod singles;
