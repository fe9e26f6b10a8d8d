//! The master of a name, found through sentinels and watched for a switch.

pub(crate) mod client;
pub(crate) mod watcher;
