//! Where to connect.
//!
//! Never: pools and guards.

mod standalone;

pub(crate) use standalone::{Connected, Endpoint, parse};
