//! However a scope ends, its connection goes back clean or is closed, and its permit is free: dropped, forgotten, stuck, expired.

mod expired;
mod leftovers;
mod reclaimed;
mod scopes;
