//! However a scope ends, its connection is back in the pool, and nothing of the scope is left on it.

mod cases;
mod explicit_cleanup;
pub(crate) mod fixture;
mod leftovers;
mod matrix;
mod run_case;
