//! What a decision waits for, as threads and tasks do it: a pause, a new connection.

use std::time::{Duration, Instant};

use crate::connection::connection::Connection;
use crate::connection::endpoint::Endpoint;
use crate::connection::handshake::OpenOptions;
use crate::connection::wire::Wire;
use crate::error::connection::ConnectionError;
use crate::settings::settings::Settings;

/// What one side opens connections and pauses with.
pub(crate) trait Io: Send + Sync + 'static {
    type Wire: Wire + 'static;

    /// Returns whether the caller may use a connection that was kept: it may belong to another runtime.
    fn is_usable_here(_wire: &Self::Wire) -> bool {
        true
    }

    /// Returns the version of the credentials; `None`: they do not change, or it is not known by
    /// `deadline`.
    fn login_version(
        endpoint: &Endpoint,
        settings: &Settings,
        deadline: Instant,
    ) -> impl Future<Output = Option<u64>> + Send;

    /// Returns whether the caller's waits are cancelled. The future of a task is dropped instead.
    fn is_cancelled() -> bool {
        false
    }

    /// Waits for `time`; returns at once if it is zero or the wait is cancelled.
    fn pause(time: Duration) -> impl Future<Output = ()> + Send;

    /// Runs a query on a connection of its own, so that it ends also if the caller is polled no more. On
    /// tokio it is a task; `None`: the task has ended before it, or is not run. Dropped before its end,
    /// the future ends the query.
    fn apart<T: Send + 'static>(
        _settings: &Settings,
        _deadline: Instant,
        query: impl Future<Output = T> + Send + 'static,
    ) -> impl Future<Output = Option<T>> + Send {
        async { Some(query.await) }
    }

    /// Opens a connection and proves that it fits its purpose. Dropped before its end, it closes the
    /// connection.
    fn open(
        endpoint: &Endpoint,
        settings: &Settings,
        options: OpenOptions,
    ) -> impl Future<Output = Result<Connection<Self::Wire>, ConnectionError>> + Send;
}
