//! However a scope ends, its connection is back, and nothing of the scope is left on it.

mod bench;
mod cells;
mod leftovers;
mod matrix;
mod play;
mod twins;
