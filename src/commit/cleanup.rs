//! Removes all state of a scope from its connection, within `cleanup_timeout`.

use crate::connection::connection::Connection;
use crate::connection::deadline::Deadline;
use crate::error::any::Error;
use crate::error::applied::Applied;
use crate::error::connection::ConnectionError;
use crate::pool::checkout::Checkout;
use crate::protocol::connection_state::{Expect, Taint};
use crate::protocol::resp::encode::{DISCARD, UNWATCH};
use crate::protocol::server_error::ServerError;

/// Removes the scope's state from its connection: DISCARD, UNWATCH, or the connection is closed.
///
/// # Errors
/// The error of the cleanup. The connection is then closed.
pub(crate) fn clean(checkout: &mut Checkout) -> Result<(), Error> {
    let limit = checkout.pool().settings().cleanup_timeout;
    let Some(link) = checkout.current() else { return Ok(()) };
    let state = link.state();
    let (during, bytes, expect) = if state.is_clean() || state.tainted().is_some() {
        return Ok(());
    } else if !state.has_all_replies() || std::thread::panicking() {
        link.taint(Taint::LeftDirty);
        return Ok(());
    } else if state.is_in_multi() {
        ("DISCARD", DISCARD, Expect::Discard)
    } else {
        ("UNWATCH", UNWATCH, Expect::Unwatch)
    };
    match cleaned(link, bytes, expect, Deadline::after(limit)) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Error::Command { command: during.to_owned(), error }),
        Err(source) => Err(Error::Lost { during: during.to_owned(), applied: Applied::No, source }),
    }
}

/// DISCARD and UNWATCH also end the watch on the connection's own register, which is then armed
/// again.
fn cleaned(
    link: &mut Connection,
    bytes: &[u8],
    expect: Expect,
    deadline: Deadline,
) -> Result<Result<(), ServerError>, ConnectionError> {
    let marker = link.known_marker().filter(|_| link.state().watches_marker());
    let Some(marker) = marker else { return link.call(bytes, expect, deadline) };
    let mut bytes = bytes.to_vec();
    marker.watch(&mut bytes);
    link.send(&bytes, &[(expect, 1), (Expect::WatchMarker, 1)], deadline)?;
    let cleaned = link.read_reply(deadline)?;
    // If the server refuses this, the connection is still clean, but not armed.
    let _: Result<(), ServerError> = link.read_reply(deadline)?;
    Ok(cleaned)
}
