//! Exactly-once commits: what a lost reply turns out to have been.
//!
//! Each doubt is made by a proxy that loses the reply, or holds EXEC back; and each resolution is
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
