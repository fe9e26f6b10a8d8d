//! A cluster in motion under load: slots move, with old keys and new ones, masters are killed, nodes
//! come and go. What was acknowledged is there, once and whole.
//!
//! One round here; `make soak-topologies` runs ten (`TOPOLOGY_ROUNDS`), on threads and on tasks.

mod ledger;
mod rounds;

use super::side;
