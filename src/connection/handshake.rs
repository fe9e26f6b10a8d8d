//! The handshake of a connection: credentials, protocol, and a proof of its purpose.
//!
//! No connection is returned before that proof, because a pool would use it.

use std::time::{Duration, Instant};

use redis::Value;

use crate::connection::connection::Connection;
use crate::connection::deadline::Deadline;
use crate::connection::endpoint::Endpoint;
use crate::connection::login::Login;
use crate::connection::wire::Wire;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::protocol::handshake::{Handshake, HandshakeReplies, Purpose};
use crate::protocol::resp::reply::Reply;
use crate::protocol::server_error::ServerError;
use crate::settings::settings::Settings;

/// The options of opening a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenOptions {
    pub(crate) purpose: Purpose,
    /// Whether MULTI is sent only after all earlier replies, so that an error names the command at
    /// which the connection was closed.
    pub(crate) multi_apart: bool,
    /// The generation that the connection belongs to.
    pub(crate) generation: u64,
    /// Deadline of the connect and the handshake, besides `connect_timeout`.
    pub(crate) deadline: Option<Instant>,
}

impl OpenOptions {
    /// Options for one query, on a connection that no pool keeps.
    pub(crate) fn for_query(generation: u64, deadline: Instant) -> Self {
        let purpose = Purpose::Pooled;
        Self { purpose, multi_apart: false, generation, deadline: Some(deadline) }
    }
}

/// Authenticates on a connection that has just been opened, and proves that it fits its purpose.
/// `in_clear`: over TCP without TLS.
pub(crate) async fn shake_hands<W: Wire>(
    endpoint: &Endpoint,
    settings: &Settings,
    options: OpenOptions,
    (login, wire, in_clear): (Login, W, bool),
    deadline: Deadline,
) -> Result<Connection<W>, ConnectionError> {
    let asks_role = endpoint.may_switch();
    let handshake = Handshake::new(&login.auth, options.purpose, asks_role, &settings.client_name);
    let expires = settings.max_lifetime.map(|lifetime| Instant::now() + jittered(lifetime));
    let mut connection = Connection::new(wire, expires, options.generation);
    connection.authenticated(login.version);
    let resp3 = login.auth.protocol().supports_resp3();
    connection.set_protocol(settings.max_reply_bytes, resp3);
    let [first, second] = handshake.writes(options.multi_apart);
    if let Err(error) = connection.send(first.bytes, first.expected, deadline).await {
        let closed = error.kind() == ConnectionErrorKind::Closed;
        let rejection = if closed { connection.read_rejection(deadline).await } else { None };
        return Err(rejection.map_or(error, ConnectionError::rejected_on_connect));
    }
    let name = |nth: u32| handshake.command(nth);
    let mut replies = HandshakeReplies::new(&handshake);
    let (mut role, mut first_error) = (None, None);
    for nth in 0..first.replies() + second.replies() {
        if nth == first.replies() {
            let sent = connection.send(second.bytes, second.expected, deadline).await;
            sent.map_err(|error| error.at(name(nth)))?;
        }
        let reply =
            connection.receive(deadline).await.map_err(|error| match first_error.take() {
                // The server sent one error and closed: the error does not concern the command.
                Some(rejection) if nth == 1 && error.kind() == ConnectionErrorKind::Closed => {
                    ConnectionError::rejected_on_connect(rejection)
                }
                _ if nth == 0 && in_clear => error.at(name(nth)).closed_before_first_byte(),
                _ => error.at(name(nth)),
            })?;
        match reply {
            Reply::Value(Value::ServerError(error)) => {
                let error = ServerError::from_reply(&error, false);
                let error = error.with_full_text(settings.server_messages);
                if nth == 0 {
                    first_error = Some(error.clone());
                }
                replies.on_error(nth, error);
            }
            reply => {
                replies.on_reply(nth, &reply);
                role = Some(reply);
            }
        }
    }
    connection.mark_alive();
    if let Some((error, command)) = replies.rejected {
        let error = ConnectionError::refused(error).at(command);
        let may_change = settings.credentials.is_some();
        return Err(if may_change { error.with_changing_credentials() } else { error });
    }
    if let Some(reply) = role.filter(|_| asks_role) {
        endpoint.judge_role(&reply.into_value(), options.generation)?;
    }
    Ok(connection)
}

/// Subtracts up to a tenth, so that connections opened together are not replaced together.
fn jittered(lifetime: Duration) -> Duration {
    lifetime.mul_f64(1.0 - fastrand::f64() / 10.0)
}
