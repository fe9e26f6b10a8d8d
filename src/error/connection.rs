//! The failure of a connection, without the bytes that were sent or received on it.

use std::{fmt, io};

use crate::protocol::sentinel::SentinelError;
use crate::protocol::server_error::ServerError;

/// The failure of a connection: the kind, and the text of the operating system or the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionError {
    kind: ConnectionErrorKind,
    text: Box<str>,
    server: Option<Box<ServerError>>,
    transient: bool,
    /// The command of the handshake whose reply was awaited.
    during: Option<&'static str>,
    /// The address to which no connection was opened, without user and password.
    address: Option<Box<str>>,
}

/// The kinds of [`ConnectionError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConnectionErrorKind {
    /// The other side closed, reset or refused the connection.
    Closed,
    /// No reply within the deadline.
    TimedOut,
    /// The bytes received are not the Redis protocol.
    Protocol,
    /// A reply larger than [`max_reply_bytes`](crate::Builder::max_reply_bytes), or nested deeper
    /// than 512 levels. The connection is closed.
    TooLarge,
    /// A well-formed reply that fits no awaited command.
    Unexpected,
    /// The server refused the connection's handshake: password, database, protocol or permissions.
    Refused,
    /// The provider of credentials returned none.
    Credentials,
    /// Any other failure of the operating system, TLS included.
    Io,
    /// Code below this crate panicked while it used the connection.
    Panicked,
}

impl ConnectionError {
    /// Returns the kind of the failure.
    pub fn kind(&self) -> ConnectionErrorKind {
        self.kind
    }

    /// The server's error if the server refused the handshake, or if EXEC failed with an error that
    /// proves nothing.
    pub fn server_error(&self) -> Option<&ServerError> {
        self.server.as_deref()
    }

    pub(crate) fn new(kind: ConnectionErrorKind, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: text.into().into(),
            server: None,
            transient: true,
            during: None,
            address: None,
        }
    }

    pub(crate) fn timed_out(text: &str) -> Self {
        Self::new(ConnectionErrorKind::TimedOut, text)
    }

    pub(crate) fn unexpected(text: &str) -> Self {
        Self::new(ConnectionErrorKind::Unexpected, text)
    }

    /// EXEC failed with an error that a proxy may have returned after EXEC ran.
    pub(crate) fn unproven(exec: ServerError) -> Self {
        let text = format!("EXEC failed with {}, which proves nothing", exec.code());
        Self { server: Some(Box::new(exec)), ..Self::new(ConnectionErrorKind::Unexpected, text) }
    }

    pub(crate) fn panicked() -> Self {
        Self::new(
            ConnectionErrorKind::Panicked,
            "a panic during the use of the connection was caught",
        )
    }

    pub(crate) fn refused(error: ServerError) -> Self {
        let (text, transient) = (error.to_string().into(), error.is_transient());
        Self {
            kind: ConnectionErrorKind::Refused,
            text,
            server: Some(Box::new(error)),
            transient,
            during: None,
            address: None,
        }
    }

    /// The server sent this error and closed the connection, whatever the command: it is full
    /// (`maxclients`), in protected mode (`DENIED`), or a proxy rejects the client.
    pub(crate) fn rejected_on_connect(error: ServerError) -> Self {
        // All but the protected mode may pass.
        let transient = error.code() != "DENIED";
        Self { transient, ..Self::refused(error) }
    }

    /// Names the command of the handshake whose reply was awaited.
    pub(crate) fn at(mut self, command: &'static str) -> Self {
        self.during = Some(command);
        self
    }

    /// Names the address to which no connection was opened.
    pub(crate) fn to(mut self, address: &str) -> Self {
        self.address = Some(address.into());
        self
    }

    /// The address to which no connection was opened, if that is known.
    pub(crate) fn address(&self) -> Option<&str> {
        self.address.as_deref()
    }

    /// A reply has arrived that fits no command, so those before it may be of other commands.
    pub(crate) fn is_misfit(&self) -> bool {
        matches!(self.kind, ConnectionErrorKind::Unexpected | ConnectionErrorKind::Protocol)
    }

    /// The other side closed the connection at MULTI, as a proxy without transactions does.
    pub(crate) fn is_closed_at_multi(&self) -> bool {
        self.kind == ConnectionErrorKind::Closed && self.during == Some("MULTI")
    }

    /// Adds a hint if the other side closed the connection before it sent a byte, without TLS.
    pub(crate) fn closed_before_first_byte(mut self) -> Self {
        if self.kind == ConnectionErrorKind::Closed {
            self.text = format!(
                "{} before it sent anything; a TLS port does so: its address begins with rediss://",
                self.text
            )
            .into();
        }
        self
    }

    /// Marks a failure that the next attempt would repeat.
    pub(crate) fn permanent(mut self) -> Self {
        self.transient = false;
        self
    }

    /// The error for a peer that is not a Redis server, by its first bytes.
    pub(crate) fn from_foreign_protocol(bytes: &[u8]) -> Option<Self> {
        let text = match bytes {
            [b'H', b'T', b'T', b'P', b'/', ..] => "the peer is an HTTP server, not a Redis server",
            [0x15 | 0x16, 0x03, ..] => {
                "the peer is a TLS server: its address begins with rediss://"
            }
            [b'S', b'S', b'H', b'-', ..] => "the peer is an SSH server, not a Redis server",
            _ => return None,
        };
        Some(Self::new(ConnectionErrorKind::Protocol, text).permanent())
    }

    /// Marks a rejected password as transient: the next attempt may use other credentials.
    pub(crate) fn with_changing_credentials(mut self) -> Self {
        let code = self.server.as_deref().map(ServerError::code);
        self.transient |= matches!(code, Some("WRONGPASS" | "NOAUTH"));
        self
    }

    /// Adds that the query of the sentinels for this master failed.
    pub(crate) fn of_sentinels(mut self, master: &str) -> Self {
        self.text = format!("the sentinels of {master} returned no address: {}", self.text).into();
        self
    }

    pub(crate) fn of_io(error: &io::Error) -> Self {
        use io::ErrorKind as K;
        let kind = match error.kind() {
            K::TimedOut | K::WouldBlock => return Self::timed_out("no reply in time"),
            K::BrokenPipe
            | K::ConnectionReset
            | K::ConnectionRefused
            | K::ConnectionAborted
            | K::UnexpectedEof
            | K::NotConnected
            | K::NotFound => ConnectionErrorKind::Closed,
            _ => ConnectionErrorKind::Io,
        };
        let failed = Self::new(kind, cut(error.to_string()));
        if is_final_in_tls(error) { failed.permanent() } else { failed }
    }

    pub(crate) fn of(error: &redis::RedisError) -> Self {
        if error.is_timeout() {
            Self::timed_out("no reply in time")
        } else if error.is_connection_dropped() || error.is_connection_refusal() {
            Self::new(ConnectionErrorKind::Closed, cut(error.to_string()))
        } else if error.kind() == redis::ErrorKind::Parse {
            Self::new(ConnectionErrorKind::Protocol, "the reply is not the Redis protocol")
        } else if let Some(server) = ServerError::of(error) {
            Self::refused(server)
        } else {
            let failed = Self::new(ConnectionErrorKind::Io, cut(error.to_string()));
            match io_of(error) {
                Some(io) if is_final_in_tls(io) => failed.permanent(),
                _ => failed,
            }
        }
    }

    /// Whether the next attempt may succeed. Not after the server rejected a password or lacks a
    /// permission.
    pub(crate) fn is_transient_failure(&self) -> bool {
        self.transient
    }
}

impl From<SentinelError> for ConnectionError {
    fn from(error: SentinelError) -> Self {
        match error {
            SentinelError::Refused(error) => Self::refused(error),
            SentinelError::Unexpected(text) => Self::unexpected(text),
        }
    }
}

/// The I/O error within a `RedisError`.
pub(crate) fn io_of(error: &redis::RedisError) -> Option<&io::Error> {
    type SharedError = std::sync::Arc<dyn std::error::Error + Send + Sync>;
    let source = std::error::Error::source(error)?;
    match source.downcast_ref::<SharedError>() {
        Some(shared) => shared.downcast_ref(),
        None => source.downcast_ref(),
    }
}

/// Whether the next attempt would fail in TLS as well: because of a certificate, the TLS versions
/// of both sides, or a peer without TLS.
#[cfg(feature = "tls-rustls")]
fn is_final_in_tls(error: &io::Error) -> bool {
    use rustls::{AlertDescription as Alert, Error as Tls};

    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Tls>());
    match inner {
        Some(Tls::AlertReceived(alert)) => {
            !matches!(alert, Alert::CloseNotify | Alert::InternalError | Alert::UserCanceled)
        }
        Some(Tls::InvalidCertificate(_) | Tls::InvalidMessage(_)) => true,
        Some(Tls::PeerIncompatible(_) | Tls::NoCertificatesPresented) => true,
        _ => false,
    }
}

#[cfg(not(feature = "tls-rustls"))]
fn is_final_in_tls(_: &io::Error) -> bool {
    false
}

/// The text of an I/O or TLS failure. It is about sockets and certificates, never about commands.
fn cut(mut text: String) -> String {
    let cut = text.char_indices().map(|(at, _)| at).nth(160).unwrap_or(text.len());
    text.truncate(cut);
    text
}

impl fmt::Display for ConnectionErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "connection closed",
            Self::TimedOut => "timed out",
            Self::Protocol => "protocol error",
            Self::TooLarge => "reply too large",
            Self::Unexpected => "unexpected reply",
            Self::Refused => "refused by the server",
            Self::Credentials => "no credentials",
            Self::Io => "I/O error",
            Self::Panicked => "panicked",
        })
    }
}

impl fmt::Display for ConnectionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.kind)?;
        match self.during {
            Some(command) if self.kind == ConnectionErrorKind::Refused => {
                write!(f, "{command}: {}", self.text)?;
            }
            // The text of TLS itself names the reason.
            Some(command) if self.kind != ConnectionErrorKind::Io => {
                write!(f, "{}, at {command}", self.text)?;
            }
            _ => f.write_str(&self.text)?,
        }
        if self.is_closed_at_multi() {
            f.write_str(" (as a proxy without transactions does)")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConnectionError {}
