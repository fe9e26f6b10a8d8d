//! The re-authentication of a connection between two callers, after its credentials have changed.

use std::time::Instant;

use tracing::Level;

use crate::connection::login::Login;
use crate::error::connection::ConnectionError;
use crate::pool::line::Line;

/// Re-authenticates with the credentials that `login` returns, if `version` is not the connection's.
/// Returns false if the connection was lost. Dropped before its end, it leaves a connection that awaits a reply.
///
/// Without new credentials, or if the server refuses them, the connection keeps its identity.
pub(crate) async fn reauthenticate<L: Line, F>(
    line: &mut L,
    version: u64,
    checkout_deadline: Instant,
    login: impl FnOnce() -> F + Send,
) -> bool
where
    F: Future<Output = Result<Login, ConnectionError>> + Send,
{
    if !line.current().is_some_and(|connection| connection.needs_reauth(version)) {
        return true;
    }
    let address = line.context().endpoint.address().into_owned();
    // Before the timer starts: the provider's latency does not count against the server.
    let context = line.context();
    let login = match context.endpoint.silent_provider(context.settings().response_timeout) {
        Some(error) => Err(error),
        None => login().await,
    };
    let deadline = line.response_deadline().capped(checkout_deadline);
    let Some(connection) = line.current() else { return false };
    let login = match login {
        Ok(login) => login,
        Err(error) => {
            connection.auth_failed();
            line.log_later(Level::WARN, move || {
                tracing::warn!(
                    server.address = &*address, error = %format_args!("{error:#}"),
                    "no new credentials; the connection keeps its identity"
                );
            });
            return true;
        }
    };
    match connection.reauthenticate(&login, deadline).await {
        Ok(Ok(())) => {
            line.context().shared.counters.reauthentications.add();
            line.log_later(Level::DEBUG, move || {
                tracing::debug!(server.address = &*address, "re-authenticated");
            });
        }
        Ok(Err(error)) => line.log_later(Level::WARN, move || {
            tracing::warn!(
                server.address = &*address, error = %format_args!("{error:#}"),
                "the new credentials were refused; the connection keeps its identity"
            );
        }),
        Err(cause) => {
            line.on_no_reply(&cause, deadline);
            line.log_replaced(&cause);
            return false;
        }
    }
    true
}
