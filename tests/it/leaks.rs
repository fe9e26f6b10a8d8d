//! However a scope ends, its connection is returned clean or closed, and its permit is free: dropped, forgotten,
//! stuck, expired.

mod expired;
mod leftovers;
mod reclaimed;
mod scopes;
