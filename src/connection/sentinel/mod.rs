//! The address of a master, found through sentinels and watched for a failover.

pub(crate) mod blocking_queries;
pub(crate) mod client;
pub(crate) mod queries;
pub(crate) mod single_flight;
pub(crate) mod watcher;
