//! The scopes of callers that are tasks, with the reads of the command table, and their turns on hot
//! keys.

pub(crate) mod attempt;
pub(crate) mod merged;
pub(crate) mod turns;
pub(crate) mod watching;
