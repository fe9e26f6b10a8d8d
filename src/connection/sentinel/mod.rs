//! The address of a master, found through sentinels and watched for a failover.

pub(crate) mod client;
pub(crate) mod watcher;
