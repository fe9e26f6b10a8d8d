//! How a connection failed.
//!
//! Never: what was sent or received on it.

use std::{fmt, io};

#[cfg(feature = "sentinel")]
use crate::protocol::sentinel::SentinelError;
use crate::protocol::server_error::ServerError;

/// How a connection failed: the kind, and the operating system's or the server's own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionError {
    kind: ConnectionErrorKind,
    text: Box<str>,
    server: Option<Box<ServerError>>,
    passing: bool,
    /// The command of the hand-shake that was to be answered next.
    during: Option<&'static str>,
}

/// The kinds of [`ConnectionError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConnectionErrorKind {
    /// The other side closed or reset the connection, or refused it.
    Closed,
    /// No answer within the deadline.
    TimedOut,
    /// What came is not the Redis protocol.
    Protocol,
    /// A reply larger than [`max_reply_bytes`](crate::session::builder::Builder::max_reply_bytes), or nested deeper
    /// than 512 levels. The connection is closed.
    TooLarge,
    /// A well-formed reply that cannot stand where it came.
    Unexpected,
    /// The server refused the connection's hand-shake: password, database, protocol or rights.
    Refused,
    /// The provider of credentials did not know any.
    Credentials,
    /// Any other failure of the operating system's, TLS included.
    Io,
    /// Code below this crate panicked while it used the connection.
    Panicked,
}

impl ConnectionError {
    /// How it failed.
    pub fn kind(&self) -> ConnectionErrorKind {
        self.kind
    }

    /// The server's own words, where the server refused the hand-shake, or where EXEC was answered
    /// with an error that proves nothing.
    pub fn server_error(&self) -> Option<&ServerError> {
        self.server.as_deref()
    }

    pub(crate) fn new(kind: ConnectionErrorKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into().into(), server: None, passing: true, during: None }
    }

    pub(crate) fn timed_out(text: &str) -> Self {
        Self::new(ConnectionErrorKind::TimedOut, text)
    }

    pub(crate) fn unexpected(text: &str) -> Self {
        Self::new(ConnectionErrorKind::Unexpected, text)
    }

    /// EXEC was answered with an error that a proxy may have given after EXEC ran.
    pub(crate) fn unproven(exec: ServerError) -> Self {
        let text = format!("EXEC was answered {}, which does not prove anything", exec.code());
        Self { server: Some(Box::new(exec)), ..Self::new(ConnectionErrorKind::Unexpected, text) }
    }

    pub(crate) fn panicked() -> Self {
        Self::new(ConnectionErrorKind::Panicked, "a panic below the connection was caught")
    }

    pub(crate) fn refused(error: ServerError) -> Self {
        let (text, passing) = (error.to_string().into(), error.is_transient());
        Self {
            kind: ConnectionErrorKind::Refused,
            text,
            server: Some(Box::new(error)),
            passing,
            during: None,
        }
    }

    /// The server has sent this and closed the connection, whatever it was asked: it is full
    /// (`maxclients`), in protected mode (`DENIED`), or a proxy turns the client away.
    pub(crate) fn turned_away(error: ServerError) -> Self {
        // All but the mode may pass.
        let passing = error.code() != "DENIED";
        Self { passing, ..Self::refused(error) }
    }

    /// It happened when this command of the hand-shake was to be answered.
    pub(crate) fn at(mut self, command: &'static str) -> Self {
        self.during = Some(command);
        self
    }

    /// The other side has closed the connection at MULTI, as a proxy does that does not know
    /// transactions.
    pub(crate) fn is_closed_at_multi(&self) -> bool {
        self.kind == ConnectionErrorKind::Closed && self.during == Some("MULTI")
    }

    /// The other side has closed the connection before it sent a byte, and TLS was not asked for.
    pub(crate) fn before_a_byte(mut self) -> Self {
        if self.kind == ConnectionErrorKind::Closed {
            self.text = format!(
                "{} before it sent anything; a port of TLS does so, whose address begins with rediss://",
                self.text
            )
            .into();
        }
        self
    }

    /// The next try would end in the same way.
    pub(crate) fn for_good(mut self) -> Self {
        self.passing = false;
        self
    }

    /// What answered is not a Redis server, by the first bytes of what it sent.
    pub(crate) fn of_another_protocol(bytes: &[u8]) -> Option<Self> {
        let text = match bytes {
            [b'H', b'T', b'T', b'P', b'/', ..] => {
                "an HTTP server answered, which is no Redis server"
            }
            [0x15 | 0x16, 0x03, ..] => {
                "a TLS server answered: the address of one begins with rediss://"
            }
            [b'S', b'S', b'H', b'-', ..] => "an SSH server answered, which is no Redis server",
            _ => return None,
        };
        Some(Self::new(ConnectionErrorKind::Protocol, text).for_good())
    }

    /// The next try may be with other credentials.
    pub(crate) fn of_changing_credentials(mut self) -> Self {
        let code = self.server.as_deref().map(ServerError::code);
        self.passing |= matches!(code, Some("WRONGPASS" | "NOAUTH"));
        self
    }

    /// It was sentinels that failed, asked for this master.
    #[cfg(feature = "sentinel")]
    pub(crate) fn by_sentinels(mut self, master: &str) -> Self {
        self.text =
            format!("the sentinels of {master} do not say where it is: {}", self.text).into();
        self
    }

    pub(crate) fn of_io(error: &io::Error) -> Self {
        use io::ErrorKind as K;
        let kind = match error.kind() {
            K::TimedOut | K::WouldBlock => return Self::timed_out("no answer in time"),
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
        if is_verdict(error) { failed.for_good() } else { failed }
    }

    pub(crate) fn of(error: &redis::RedisError) -> Self {
        if error.is_timeout() {
            Self::timed_out("no answer in time")
        } else if error.is_connection_dropped() || error.is_connection_refusal() {
            Self::new(ConnectionErrorKind::Closed, cut(error.to_string()))
        } else if error.kind() == redis::ErrorKind::Parse {
            Self::new(ConnectionErrorKind::Protocol, "the reply is not the Redis protocol")
        } else if let Some(server) = ServerError::of(error) {
            Self::refused(server)
        } else {
            let failed = Self::new(ConnectionErrorKind::Io, cut(error.to_string()));
            match io_of(error) {
                Some(io) if is_verdict(io) => failed.for_good(),
                _ => failed,
            }
        }
    }

    /// Whether waiting may help: not where the server gave a verdict on password or rights.
    pub(crate) fn is_passing(&self) -> bool {
        self.passing
    }
}

#[cfg(feature = "sentinel")]
impl From<SentinelError> for ConnectionError {
    fn from(error: SentinelError) -> Self {
        match error {
            SentinelError::Refused(error) => Self::refused(error),
            SentinelError::Unexpected(text) => Self::unexpected(text),
        }
    }
}

/// The I/O error that a `RedisError` is made of.
pub(crate) fn io_of(error: &redis::RedisError) -> Option<&io::Error> {
    type Shared = std::sync::Arc<dyn std::error::Error + Send + Sync>;
    let source = std::error::Error::source(error)?;
    match source.downcast_ref::<Shared>() {
        Some(shared) => shared.downcast_ref(),
        None => source.downcast_ref(),
    }
}

/// Whether TLS failed in a way that the next try would fail in too: by a certificate, by what both sides
/// know of TLS, or because the other side does not speak it.
#[cfg(feature = "tls-rustls")]
fn is_verdict(error: &io::Error) -> bool {
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
fn is_verdict(_: &io::Error) -> bool {
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
            // TLS's own words name the reason, whatever was asked.
            Some(command) if self.kind != ConnectionErrorKind::Io => {
                write!(f, "{}, at {command}", self.text)?;
            }
            _ => f.write_str(&self.text)?,
        }
        if self.is_closed_at_multi() {
            f.write_str(" (as a proxy does that does not know transactions)")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConnectionError {}
