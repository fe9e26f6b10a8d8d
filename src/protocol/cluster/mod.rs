//! Redis Cluster: hash slots, the slot map, redirections.

pub(crate) mod redirect;
pub(crate) mod route;
pub(crate) mod slot;
pub(crate) mod slot_map;
