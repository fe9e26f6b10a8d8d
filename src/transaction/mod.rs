//! The guards: blocks, transactions, watching scopes, savepoints and the command table.
//!
//! Never: the inside of a pool, and never: wire bytes.

pub(crate) mod admission;
pub(crate) mod block;
pub(crate) mod body;
pub(crate) mod commands;
pub(crate) mod condition;
pub(crate) mod conditional;
pub(crate) mod declared;
pub(crate) mod guard;
pub(crate) mod keys;
pub(crate) mod options;
pub(crate) mod outcome;
pub(crate) mod run;
pub(crate) mod savepoint;
pub(crate) mod scope;
pub(crate) mod watch;
pub(crate) mod watching;
