//! Where to connect.
//!
//! Never: pools and guards.

mod address;
#[cfg(any(feature = "cluster", feature = "sentinel"))]
mod answer;
#[cfg(feature = "cluster")]
pub(crate) mod cluster;
#[cfg(feature = "sentinel")]
mod directory;
mod endpoint;
mod login;
#[cfg(feature = "sentinel")]
mod sentinel;
mod standalone;
#[cfg(feature = "tls-rustls")]
mod tls;

pub use address::IntoAddress;
#[cfg(not(feature = "cluster"))]
pub(crate) use address::NO_CLUSTER;
#[cfg(not(feature = "sentinel"))]
pub(crate) use address::NO_SENTINEL;
pub(crate) use address::cluster as cluster_address;
#[cfg(test)]
pub(crate) use address::one as parse;
pub(crate) use address::{Address, behind, check, like};
pub(crate) use endpoint::Endpoint;
pub(crate) use login::Login;
pub(crate) use standalone::Connected;
#[cfg(feature = "tls-rustls")]
pub(crate) use tls::Session;
