//! The pooled handle: the whole `redis::Commands` vocabulary, each command on a connection that is
//! borrowed for its own round trip, none of them sent twice.

pub(crate) mod fixture;

mod blocking;
mod lost;
mod proven;
mod raw;
mod read_along;
mod sharing;
mod vocabulary;
