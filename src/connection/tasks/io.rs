//! What a decision waits for, as tasks do it.

use std::time::Duration;

use tokio::runtime::Handle;

use crate::connection::connection::Connection;
use crate::connection::endpoint::Endpoint;
use crate::connection::handshake::OpenOptions;
use crate::connection::io::Io;
use crate::connection::tasks::wire::TaskWire;
use crate::error::connection::ConnectionError;
use crate::settings::settings::Settings;

/// The callers are tasks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tasks;

impl Io for Tasks {
    type Wire = TaskWire;

    async fn pause(time: Duration) {
        if time > Duration::ZERO {
            tokio::time::sleep(time).await;
        }
    }

    async fn open(
        _endpoint: &Endpoint,
        _settings: &Settings,
        _options: OpenOptions,
    ) -> Result<Connection<TaskWire>, ConnectionError> {
        todo!()
    }
}

/// Opens a connection in a task of its own on `runtime`, which passes the result to `then` and runs on
/// until the connection is closed.
pub(crate) fn spawn_connection(
    _runtime: &Handle,
    _endpoint: Endpoint,
    _settings: std::sync::Arc<Settings>,
    _options: OpenOptions,
    _then: impl FnOnce(Result<Connection<TaskWire>, ConnectionError>) + Send + 'static,
) {
    todo!()
}
