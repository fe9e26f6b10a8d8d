//! The reason why no connection was available. Nothing was sent.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use crate::error::connection::ConnectionError;
use crate::error::open_scope::OpenScope;
use crate::text::{brief, display};

/// The reason why no connection was available. Nothing was sent.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum CheckoutError {
    /// No connection was returned within `checkout_timeout`.
    Timeout(Box<CheckoutTimeout>),
    /// Every connection is held by a closure whose thread waits for another one.
    #[non_exhaustive]
    WouldDeadlock {
        /// The closures that hold the connections.
        holders: Vec<OpenScope>,
    },
    /// The wait was [cancelled](crate::Cancel).
    Cancelled,
    /// The session manager was closed.
    Closed,
    /// The session manager was made in another process, and this one is a fork of it: the
    /// connections belong to the parent. In the child each use fails with this error at once, and a
    /// drop does nothing.
    OtherProcess,
    /// A connection was permitted, but none could be opened.
    #[non_exhaustive]
    Connect {
        /// Time that the call waited.
        waited: Duration,
        /// The last failure.
        source: ConnectionError,
    },
}

/// The state of the pool when a checkout timed out.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CheckoutTimeout {
    /// Time that the call waited.
    pub waited: Duration,
    /// The pool's size.
    pub max_size: u32,
    /// Connections in use.
    pub in_use: u32,
    /// Connections that were open and idle.
    pub idle: u32,
    /// Waiting calls, this one included.
    pub waiters: usize,
    /// The scopes that held the connections, each with its place, thread and age.
    pub holders: Vec<OpenScope>,
    /// The last failure to connect, if there was one recently.
    pub last_connect_error: Option<ConnectionError>,
}

impl CheckoutError {
    /// Whether the same call may succeed later.
    pub(crate) fn is_retryable(&self) -> bool {
        match self {
            Self::Timeout(_) => true,
            Self::WouldDeadlock { .. } | Self::Cancelled | Self::Closed | Self::OtherProcess => {
                false
            }
            Self::Connect { source, .. } => source.is_transient_failure(),
        }
    }
}

impl CheckoutError {
    pub(crate) fn text(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout(timeout) => timeout.text(f),
            Self::WouldDeadlock { holders } => write!(
                f,
                "waiting would never end: every connection is held by a watching closure on a \
                 thread that waits for another one; do not use the handle inside its own closure, \
                 or raise max_size; held by {}",
                list(holders)
            ),
            Self::Cancelled => f.write_str("the wait for a connection was cancelled"),
            Self::Closed => f.write_str("the session manager is closed"),
            Self::OtherProcess => f.write_str(
                "the session manager was made in another process, of which this one is a fork: \
                 make a new one after the fork",
            ),
            Self::Connect { waited, source } => {
                let to = source.address().unwrap_or("the server");
                write!(f, "no connection to {to} after {}", brief(*waited))
            }
        }
    }
}

impl Error for CheckoutError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Timeout(timeout) => timeout.source(),
            Self::Connect { source, .. } => Some(source),
            Self::WouldDeadlock { .. } | Self::Cancelled | Self::Closed | Self::OtherProcess => {
                None
            }
        }
    }
}

display!(CheckoutError, CheckoutTimeout);

impl Error for CheckoutTimeout {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.last_connect_error.as_ref().map(|error| error as _)
    }
}

impl CheckoutTimeout {
    fn text(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no connection within {}: {} of {} in use, {} idle, {} waiting; held by {}",
            brief(self.waited),
            self.in_use,
            self.max_size,
            self.idle,
            self.waiters,
            list(&self.holders)
        )?;
        if self.last_connect_error.is_some() {
            f.write_str("; there was a failure to connect")?;
        }
        Ok(())
    }
}

fn list(holders: &[OpenScope]) -> String {
    if holders.is_empty() {
        return "single commands only".to_owned();
    }
    holders.iter().map(OpenScope::to_string).collect::<Vec<_>>().join("; ")
}
