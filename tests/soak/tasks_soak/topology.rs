//! The soak of a cluster in motion, on tasks.

#[path = "../topology_soak/ledger.rs"]
mod ledger;
#[path = "../topology_soak/rounds.rs"]
mod rounds;

use super::side;
