//! Removes all state of a scope from its connection, within `cleanup_timeout`.

use std::borrow::Cow;
use std::panic::Location;
use std::sync::Arc;
use std::time::Instant;

use redis::Value;
use tracing::Level;

use crate::connection::connection::Interruption;
use crate::connection::deadline::Deadline;
use crate::connection::wire::Wire;
use crate::error::any::Error;
use crate::error::applied::Applied;
use crate::pool::line::Line;
use crate::protocol::connection_state::{CloseReason, Expect};
use crate::protocol::marker::CommitMarker;
use crate::protocol::resp::encode::{DISCARD, UNWATCH};
use crate::protocol::resp::reply::Reply;
use crate::protocol::server_error::ServerError;
use crate::sync::boxed::boxed;

/// Returns whether the connection has state of the scope.
pub(crate) fn is_needed<L: Line>(line: &mut L) -> bool {
    let has_early_watch = line.has_early_watch();
    line.current().is_some_and(|connection| {
        // What is due for it is the next caller's.
        let is_next_callers = connection.early_watch_is_due() && has_early_watch;
        !connection.state().is_clean() && !is_next_callers
    })
}

/// Removes the scope's state from its connection: DISCARD, UNWATCH, or the connection is closed.
/// Replies to a dropped call are read first, if its message was sent completely. Dropped before its
/// end, it leaves a connection that awaits replies.
///
/// # Errors
/// The error of the cleanup. The connection is then closed.
pub(crate) async fn clean<L: Line>(line: &mut L) -> Result<(), Error> {
    let (settings, unwinding) = (Arc::clone(line.context().settings()), line.is_unwinding());
    let Some(connection) = line.current() else { return Ok(()) };
    let state = connection.state();
    if state.is_clean() || state.tainted().is_some() {
        return Ok(());
    }
    let deadline = Deadline::after(settings.cleanup_timeout);
    let reads_on = <L::Wire as Wire>::FINISHES_DROPPED || connection.early_watch_is_due();
    if unwinding || (!state.has_all_replies() && !reads_on) {
        connection.taint(CloseReason::LeftDirty);
        return Ok(());
    }
    if reads_on && !state.has_all_replies() {
        let received = boxed(connection.receive_left(deadline)).await;
        received.map_err(|source| Error::Lost {
            during: "reading the replies to a dropped call".to_owned(),
            applied: Applied::Unknown,
            source,
        })?;
    }
    let state = connection.state();
    let (during, bytes, expect) = if state.is_clean() || state.tainted().is_some() {
        return Ok(());
    } else if state.is_in_multi() {
        ("DISCARD", DISCARD, Expect::Discard)
    } else {
        ("UNWATCH", UNWATCH, Expect::Unwatch)
    };
    // DISCARD and UNWATCH also end the watch on the connection's own register. It may have gone since it
    // was written, so it is written again.
    let rearms = state.watches_marker();
    let tag = connection.known_marker().and_then(CommitMarker::tag);
    let mut bytes = Cow::Borrowed(bytes);
    if rearms && let Ok(marker) = connection.begin_register(&settings.prefix, tag, false) {
        marker.set(bytes.to_mut(), settings.register_ttl);
        marker.watch(bytes.to_mut());
    }
    let behind = u32::from(rearms);
    let expected = [(expect, 1), (Expect::Plain, behind), (Expect::WatchMarker, behind)];
    // If the server refuses to arm the marker, the connection is still clean, but not armed.
    let (mut refused, mut written) = (None, rearms.then(Instant::now));
    let mut take = |kind, reply| {
        if let Reply::Value(Value::ServerError(error)) = reply {
            match kind == expect {
                true => refused = Some(ServerError::from_reply(&error, false)),
                false => written = None,
            }
        }
    };
    let cleaned = connection.exchange(&bytes, &expected, deadline, &mut take).await;
    match (cleaned, refused) {
        (Ok(()), None) => {
            connection.mark_alive();
            connection.set_marker_written(written);
            Ok(())
        }
        (Ok(()), Some(error)) => {
            connection.mark_alive();
            Err(Error::Command { command: during.to_owned(), error })
        }
        (Err(Interruption { cause: source, .. }), _) => {
            // `cleanup_timeout` is too short to close the others without a probe.
            line.context().probe_idle();
            Err(Error::Lost { during: during.to_owned(), applied: Applied::No, source })
        }
    }
}

/// As [`clean`], also when it is dropped; the error is logged when the connection is returned.
pub(crate) async fn clean_or_log<L: Line>(
    line: &mut L,
    begun_at: Option<&'static Location<'static>>,
) {
    if let Err(error) = clean(line).await {
        let begun_at = begun_at.map(tracing::field::display);
        line.log_later(Level::DEBUG, move || {
            tracing::debug!(error = %format_args!("{error:#}"), begun_at, "cleaning failed, connection replaced");
        });
    }
}
