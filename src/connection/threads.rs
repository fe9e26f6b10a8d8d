//! The side of the callers that are threads. Each wait blocks the thread, and its future is ready
//! when it is returned.

use std::future::ready;
use std::time::{Duration, Instant};

use crate::connection::connect::Connected;
use crate::connection::connection::Connection;
use crate::connection::deadline::Deadline;
use crate::connection::endpoint::Endpoint;
use crate::connection::handshake::{OpenOptions, shake_hands};
use crate::connection::io::Io;
use crate::connection::transport::Transport;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::settings::settings::Settings;
use crate::sync::now::now;

/// The callers are threads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Threads;

impl Io for Threads {
    type Wire = Transport;

    fn pause(time: Duration) -> impl Future<Output = ()> + Send {
        if time > Duration::ZERO {
            std::thread::sleep(time);
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
    let login = endpoint.login()?;
    let now_at = Instant::now();
    let left = options.deadline.map_or(Duration::MAX, |end| end.saturating_duration_since(now_at));
    let limit = settings.connect_timeout.min(left);
    let deadline = Deadline::after(limit);
    let connected = endpoint.connect(limit)?;
    let peer = connected.socket().peer_addr().ok();
    let in_clear = matches!(connected, Connected::Socket(_)) && endpoint.host_and_port().1 != 0;
    let wire = Transport::new(connected);
    let shaken = shake_hands(endpoint, settings, options, (login, wire, in_clear), deadline);
    let opened = now(shaken);
    if let (Err(error), Some(peer)) = (&opened, peer)
        && matches!(error.kind(), ConnectionErrorKind::TimedOut | ConnectionErrorKind::Closed)
    {
        settings.resolver.failed(peer);
    }
    opened
}
