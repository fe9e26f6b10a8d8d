//! Where to connect.
//!
//! Never: pools and guards.

mod address;
#[cfg(feature = "cluster")]
pub(crate) mod cluster;
mod standalone;

pub(crate) use address::Address;
pub use address::IntoAddress;
#[cfg(not(feature = "cluster"))]
pub(crate) use address::NO_CLUSTER;
pub(crate) use address::cluster as cluster_address;
#[cfg(test)]
pub(crate) use address::one as parse;
pub(crate) use standalone::{Connected, Endpoint};
