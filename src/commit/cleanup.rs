//! Removes all state of a scope from its connection, within `cleanup_timeout`.

use std::borrow::Cow;
use std::panic::Location;

use tracing::Level;

use crate::connection::deadline::Deadline;
use crate::error::any::Error;
use crate::error::applied::Applied;
use crate::pool::checkout::Checkout;
use crate::protocol::connection_state::{CloseReason, Expect};
use crate::protocol::resp::encode::{DISCARD, UNWATCH};
use crate::protocol::server_error::ServerError;

/// Removes the scope's state from its connection: DISCARD, UNWATCH, or the connection is closed.
///
/// # Errors
/// The error of the cleanup. The connection is then closed.
pub(crate) fn clean(checkout: &mut Checkout) -> Result<(), Error> {
    let limit = checkout.pool().settings().cleanup_timeout;
    let Some(connection) = checkout.current() else { return Ok(()) };
    let state = connection.state();
    let (during, bytes, expect) = if state.is_clean() || state.tainted().is_some() {
        return Ok(());
    } else if !state.has_all_replies() || std::thread::panicking() {
        connection.taint(CloseReason::LeftDirty);
        return Ok(());
    } else if state.is_in_multi() {
        ("DISCARD", DISCARD, Expect::Discard)
    } else {
        ("UNWATCH", UNWATCH, Expect::Unwatch)
    };
    let deadline = Deadline::after(limit);
    // DISCARD and UNWATCH also end the watch on the connection's own register, which is then armed
    // again.
    let marker = connection.known_marker().filter(|_| state.watches_marker());
    let mut bytes = Cow::Borrowed(bytes);
    if let Some(marker) = marker {
        marker.watch(bytes.to_mut());
    }
    let rearms = marker.is_some();
    let expected = [(expect, 1), (Expect::WatchMarker, u32::from(rearms))];
    let cleaned = connection.send(&bytes, &expected, deadline).and_then(|()| {
        let cleaned = connection.read_reply(deadline)?;
        if rearms {
            // If the server refuses this, the connection is still clean, but not armed.
            let _: Result<(), ServerError> = connection.read_reply(deadline)?;
        }
        Ok(cleaned)
    });
    match cleaned {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Error::Command { command: during.to_owned(), error }),
        Err(source) => Err(Error::Lost { during: during.to_owned(), applied: Applied::No, source }),
    }
}

/// The same; the error is logged when the connection is returned.
pub(crate) fn clean_or_log(checkout: &mut Checkout, begun_at: Option<&'static Location<'static>>) {
    if let Err(error) = clean(checkout) {
        let begun_at = begun_at.map(tracing::field::display);
        checkout.log_later(Level::DEBUG, move || {
            tracing::debug!(error = %format_args!("{error:#}"), begun_at, "cleaning failed, connection replaced");
        });
    }
}
