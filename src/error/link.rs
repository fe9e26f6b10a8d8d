//! How a connection failed.
//!
//! Never: what was sent or received on it.

use std::{fmt, io};

use super::server::ServerError;

/// How a connection failed: the kind, and the operating system's or the server's own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkError {
    kind: LinkErrorKind,
    text: String,
    server: Option<ServerError>,
    passing: bool,
}

/// The kinds of [`LinkError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LinkErrorKind {
    /// The other side closed or reset the connection, or refused it.
    Closed,
    /// No answer within the deadline.
    TimedOut,
    /// What came is not the Redis protocol.
    Protocol,
    /// A reply larger than [`max_reply_bytes`](crate::session::Builder::max_reply_bytes), or nested deeper
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

impl LinkError {
    /// How it failed.
    pub fn kind(&self) -> LinkErrorKind {
        self.kind
    }

    /// The server's own words, where the server refused the hand-shake, or where EXEC was answered
    /// with an error that proves nothing.
    pub fn server_error(&self) -> Option<&ServerError> {
        self.server.as_ref()
    }

    pub(crate) fn new(kind: LinkErrorKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into(), server: None, passing: true }
    }

    pub(crate) fn timed_out(text: &str) -> Self {
        Self::new(LinkErrorKind::TimedOut, text)
    }

    pub(crate) fn unexpected(text: &str) -> Self {
        Self::new(LinkErrorKind::Unexpected, text)
    }

    /// EXEC was answered with an error that a proxy may have given after EXEC ran.
    pub(crate) fn unproven(exec: ServerError) -> Self {
        let text = format!("EXEC was answered {}, which does not prove anything", exec.code());
        Self { server: Some(exec), ..Self::new(LinkErrorKind::Unexpected, text) }
    }

    pub(crate) fn panicked() -> Self {
        Self::new(LinkErrorKind::Panicked, "a panic below the connection was caught")
    }

    pub(crate) fn refused(error: ServerError) -> Self {
        let (text, passing) = (error.to_string(), error.is_transient());
        Self { kind: LinkErrorKind::Refused, text, server: Some(error), passing }
    }

    /// The next try may be with other credentials.
    pub(crate) fn of_changing_credentials(mut self) -> Self {
        let code = self.server.as_ref().map(ServerError::code);
        self.passing |= matches!(code, Some("WRONGPASS" | "NOAUTH"));
        self
    }

    /// It was sentinels that failed, asked for this master.
    #[cfg(feature = "sentinel")]
    pub(crate) fn by_sentinels(mut self, master: &str) -> Self {
        self.text = format!("the sentinels of {master} do not say where it is: {}", self.text);
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
            | K::NotFound => LinkErrorKind::Closed,
            _ => LinkErrorKind::Io,
        };
        Self::new(kind, cut(error.to_string()))
    }

    pub(crate) fn of(error: &redis::RedisError) -> Self {
        if error.is_timeout() {
            Self::timed_out("no answer in time")
        } else if error.is_connection_dropped() || error.is_connection_refusal() {
            Self::new(LinkErrorKind::Closed, cut(error.to_string()))
        } else if error.kind() == redis::ErrorKind::Parse {
            Self::new(LinkErrorKind::Protocol, "the reply is not the Redis protocol")
        } else if let Some(server) = ServerError::of(error) {
            Self::refused(server)
        } else {
            Self::new(LinkErrorKind::Io, cut(error.to_string()))
        }
    }

    /// Whether waiting may help: not where the server gave a verdict on password or rights.
    pub(crate) fn is_passing(&self) -> bool {
        self.passing
    }
}

/// The text of an I/O or TLS failure. It is about sockets and certificates, never about commands.
fn cut(mut text: String) -> String {
    let cut = text.char_indices().map(|(at, _)| at).nth(160).unwrap_or(text.len());
    text.truncate(cut);
    text
}

impl fmt::Display for LinkErrorKind {
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

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.text)
    }
}

impl std::error::Error for LinkError {}
