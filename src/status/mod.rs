//! Counters, open scopes and one readable report.

pub(crate) mod counters;
pub(crate) mod locks;
pub(crate) mod node;
pub(crate) mod report;
