//! Exactly-once commits: what a lost answer turns out to have been, asked for afterwards.
//!
//! Each doubt is made by a proxy that loses the answer, or holds EXEC back; and each resolution is
//! compared with what another connection sees on the server, then and when everything late has
//! arrived.

mod concurrent_resolve;
mod correctness;
pub(crate) mod fixture;
mod forms;
mod keyed;
mod mixed_use;
mod race;
mod registers;
mod resolve;
#[cfg(feature = "serde")]
mod token;
mod unknown;
