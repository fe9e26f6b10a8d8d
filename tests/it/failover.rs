//! A master that is replaced: by sentinels, by `REPLICAOF`, by a restart as a replica.

mod role_change;
mod sentinels;
mod switch;
