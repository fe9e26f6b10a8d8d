//! However a scope ends, its connection is returned clean or closed, and its permit is free: dropped, forgotten,
//! stuck, expired.

mod expired;
// Left behind by `with_raw`, which is of threads.
crate::side::threads_only! {
    mod leftovers;
}
mod reclaimed;
mod scopes;
