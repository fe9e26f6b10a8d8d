//! The properties of a command, from its name and arguments.

pub(crate) mod blocking;
pub(crate) mod display_name;
pub(crate) mod fan_out;
pub(crate) mod float;
pub(crate) mod info;
pub(crate) mod keys;
pub(crate) mod reader;
pub(crate) mod refused;
pub(crate) mod table;
pub(crate) mod upper_name;
