//! A master that is replaced: by sentinels, by `REPLICAOF`, by a restart as a replica.

mod role_change;
#[cfg(feature = "sentinel")]
mod sentinels;
#[cfg(feature = "sentinel")]
mod switch;
