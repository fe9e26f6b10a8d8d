//! Exactly-once commits: what a lost answer turns out to have been, asked for afterwards.
//!
//! Each doubt is made by a proxy that loses the answer, or holds EXEC back; and each resolution is
//! compared with what another connection sees on the server, then and when everything late has
//! arrived.

mod asking;
mod durability;
mod forms;
mod holds;
mod keyed;
mod neighbours;
mod race;
mod registers;
mod resolve;
mod stage;
#[cfg(feature = "serde")]
mod token;
mod unknown;
