//! What the search for a master waits for, on each side; and the end of a connection to a former
//! master.

use std::time::{Duration, Instant};

use crate::connection::connect::Server;
use crate::connection::sentinel::single_flight::SingleFlight;
use crate::error::connection::ConnectionError;
use crate::protocol::sentinel::MasterReport;
use crate::settings::settings::Settings;

/// The queries to sentinels.
pub(crate) trait SentinelQueries {
    /// Asks a sentinel for the master of this name, on a connection of its own, which the drop of
    /// the future closes.
    fn query(
        sentinel: &Server,
        settings: &Settings,
        name: &str,
        timeout: Duration,
    ) -> impl Future<Output = Result<MasterReport, ConnectionError>> + Send;

    /// Waits until no query runs, until `until` at most.
    fn wait_for_query(queries: &SingleFlight, until: Instant) -> impl Future<Output = ()> + Send;
}

/// A connection to a master.
pub(crate) trait MasterConnection: Send + Sync {
    /// Ends the connection, also while a call uses it. Returns false if it has ended already.
    fn end(&self) -> bool;
}
