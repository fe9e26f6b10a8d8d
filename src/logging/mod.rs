//! Log events: limited in rate, and deferred until no connection is being handed over.

pub(crate) mod deferred;
pub(crate) mod rate_limit;
