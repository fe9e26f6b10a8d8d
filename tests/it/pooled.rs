//! The pooled handle: all of `redis::Commands`, each command on a connection that is checked out for its own round
//! trip, and none of them sent twice.

pub(crate) mod fixture;

mod atomic;
mod blocking;
mod lost;
mod proven;
// Raw connections and batches of waiting reads are of threads.
crate::side::threads_only! {
    mod raw;
    mod read_along;
}
mod sharing;
mod vocabulary;
