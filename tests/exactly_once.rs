//! Exactly-once commits: what a lost answer turns out to have been, asked for afterwards.
//!
//! Each doubt is made by a proxy that loses the answer, or holds EXEC back; and each resolution is
//! compared with what another connection sees on the server, then and when everything late has
//! arrived.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "test code: a panic with a clear message is how it reports"
)]

mod support;

mod exactly_once {
    mod asking;
    mod durability;
    mod forms;
    mod holds;
    mod keyed;
    mod neighbours;
    mod race;
    mod registers;
    mod resolve;
    pub(crate) mod stage;
    #[cfg(feature = "serde")]
    mod token;
    mod unknown;
}
