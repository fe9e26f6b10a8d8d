//! The end of a scope whose transaction is discarded.

use tracing::Level;

use crate::commit::side::Side;
use crate::error::any::Error;
use crate::pool::cleanup::clean;
use crate::pool::line::Line;
use crate::pool::server_pool::PinnedLine;

/// Ends a scope whose transaction is discarded, and returns the connection and the permit. Dropped
/// before its end, it leaves a connection that is closed.
pub(crate) async fn end_scope<P: Side>(pin: P::Pin) -> Result<(), Error> {
    // Its drop returns the connection before the permit.
    let mut line = pin.last_call::<Error>()?;
    line.log_later(Level::DEBUG, || tracing::debug!("discard"));
    clean(&mut *line).await
}
