//! The side of the callers that are threads. Each wait blocks the thread, and its future is ready
//! when it is returned.

use std::future::ready;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::connection::connect::Connected;
use crate::connection::connection::Connection;
use crate::connection::deadline::{self, Deadline};
use crate::connection::endpoint::Endpoint;
use crate::connection::handshake::{OpenOptions, shake_hands};
use crate::connection::io::Io;
use crate::connection::login::Login;
use crate::connection::polling::Polling;
use crate::connection::transport::Transport;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::process::sockets::OwnSocket;
use crate::protocol::connection_state::CloseReason;
use crate::settings::settings::Settings;
use crate::sync::cancel;
use crate::sync::now::now;

/// The callers are threads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Threads;

impl Io for Threads {
    type Wire = Transport;

    fn login_version(
        endpoint: &Endpoint,
        settings: &Settings,
        deadline: Instant,
    ) -> impl Future<Output = Option<u64>> + Send {
        ready(login_version(endpoint, settings, deadline))
    }

    fn is_cancelled() -> bool {
        cancel::is_cancelled()
    }

    fn pause(time: Duration) -> impl Future<Output = ()> + Send {
        let mut left = time;
        while left > Duration::ZERO && !Self::is_cancelled() {
            let tick = cancel::tick(left);
            std::thread::sleep(tick);
            left -= tick;
        }
        ready(())
    }

    fn open(
        endpoint: &Endpoint,
        settings: &Settings,
        options: OpenOptions,
    ) -> impl Future<Output = Result<Connection, ConnectionError>> + Send {
        ready(open(endpoint, settings, options))
    }
}

/// Opens a connection and proves that it fits its purpose.
pub(crate) fn open(
    endpoint: &Endpoint,
    settings: &Settings,
    options: OpenOptions,
) -> Result<Connection, ConnectionError> {
    // Before the timer starts: the provider's latency does not count against the server.
    let login = || match options.deadline {
        Some(deadline) => login(endpoint, deadline),
        // This thread opens the connections of other pools too, and reclaims scopes.
        None => match endpoint.occupied_provider(settings.response_timeout) {
            Some(error) => Err(error),
            None => login(endpoint, deadline::after(settings.checkout_timeout)),
        },
    };
    let login = catch_unwind(AssertUnwindSafe(login));
    let login = login.map_err(|_| ConnectionError::panicked())??;
    let now_at = Instant::now();
    let left = options.deadline.map_or(Duration::MAX, |end| end.saturating_duration_since(now_at));
    let limit = settings.connect_timeout.min(left);
    let deadline = Deadline::after(limit);
    let connected = endpoint.connect(limit)?;
    let peer = connected.socket().peer_addr().ok();
    let in_clear = matches!(connected, Connected::Socket(_)) && endpoint.host_and_port().1 != 0;
    let wire = Transport::new(connected, Polling::new(settings.poll));
    let shaken = shake_hands(endpoint, settings, options, (login, wire, in_clear), deadline);
    let opened = now(shaken);
    if let (Err(error), Some(peer)) = (&opened, peer)
        && matches!(error.kind(), ConnectionErrorKind::TimedOut | ConnectionErrorKind::Closed)
    {
        settings.resolver.failed(peer);
    }
    opened
}

/// Returns the credentials of a connection that is opened, or checked out, now, and does not wait for
/// the provider past `deadline`. One that may block is called on a thread of its own.
pub(crate) fn login(endpoint: &Endpoint, deadline: Instant) -> Result<Login, ConnectionError> {
    let may_block = endpoint.provider().filter(|provider| provider.may_block());
    let Some(provider) = may_block else { return endpoint.login() };
    let called = endpoint.clone();
    let call = move || catch_unwind(AssertUnwindSafe(|| called.login()));
    let late = "the provider has not returned in time";
    match provider.threads().run(deadline, late, call) {
        Ok(Ok(login)) => login,
        // The provider's panic continues here, as if it had been called on this thread.
        Ok(Err(panic)) => resume_unwind(panic),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            Err(ConnectionError::new(ConnectionErrorKind::Credentials, late))
        }
        Err(error) => Err(ConnectionError::of_io(&error)),
    }
}

/// Returns the version of the credentials; `None`: they do not change, or it is not known within
/// `response_timeout` and by `deadline`. A provider that may block is called on a thread of its own.
fn login_version(endpoint: &Endpoint, settings: &Settings, deadline: Instant) -> Option<u64> {
    let provider = endpoint.provider()?;
    if let Some(version) = provider.version_at_once() {
        return Some(version);
    }
    let limit = settings.response_timeout;
    // If it hangs, not every call waits for it.
    if endpoint.occupied_provider(limit).is_some() {
        return None;
    }
    provider.version_by(deadline::after(limit).min(deadline))
}

impl Connection {
    /// Its socket; `None` for a connection of redis-rs.
    pub(crate) fn socket(&self) -> Option<&Arc<OwnSocket>> {
        self.wire().socket()
    }

    /// Replaces the socket by a connection of redis-rs, whose credentials are there by `deadline`. Its use
    /// cannot be observed, so it is not reused afterwards.
    pub(crate) fn open_raw(
        &mut self,
        endpoint: &Endpoint,
        settings: &Settings,
        deadline: Instant,
    ) -> Result<&mut redis::Connection, ConnectionError> {
        // Its failure costs no connection.
        let login = login(endpoint, deadline)?;
        self.taint(CloseReason::Raw);
        let wire = self.wire_mut();
        // Closed first, so that the pool never has more connections than its limit.
        wire.close();
        let client = endpoint.client_as(&login, settings.connect_timeout)?;
        wire.become_client(client, settings.response_timeout)
    }
}
