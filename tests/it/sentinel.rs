//! Sentinel: the master by its name, and reads from replicas; on real servers and sentinels.
//! Failovers are in `failover/sentinels.rs`.

mod found;
