//! A master that is replaced: by sentinels, by `REPLICAOF`, by a restart as a replica.

mod role_change;
mod sentinels;
mod switch;

use std::time::Duration;

/// Time within which sentinels have replaced the master, also on a busy machine.
const FAILOVER: Duration = Duration::from_secs(60);
/// Maximum age of a connection to a former master after the switch is known.
const CLOSED_WITHIN: Duration = Duration::from_secs(10);
