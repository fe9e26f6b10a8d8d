//! Errors of this crate as errors of redis-rs, and back.

use crate::error::any::CrateError;
use crate::error::any::Error;
use crate::error::applied::Applied;
use crate::error::checkout::CheckoutError;
use crate::error::connection;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::pooled::{error_tag, recent_replies};
use crate::protocol::server_error::ServerError;
use crate::reply::error::DecodeError;

/// Carries an error of this crate through `redis::Commands` on the pooled handle.
impl From<Error> for redis::RedisError {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Lost { source, .. } if source.kind() == ConnectionErrorKind::TimedOut => {
                std::io::ErrorKind::TimedOut
            }
            Error::Checkout(CheckoutError::Timeout(_)) => std::io::ErrorKind::TimedOut,
            _ => std::io::ErrorKind::Other,
        };
        std::io::Error::new(kind, error).into()
    }
}

/// Restores the errors of this crate. Those of the server become [`Error::Command`] and
/// [`Error::Pipeline`].
impl CrateError for redis::RedisError {
    fn into_error(self) -> Error {
        let error = self;
        if let Some(own) = own_error(&error) {
            return own;
        }
        // A single command's error has a source, an aborted transaction's a kind of its own.
        let aborted = redis::ErrorKind::Server(redis::ServerErrorKind::ExecAbort);
        if std::error::Error::source(&error).is_none()
            && error.kind() != aborted
            && let Some(failures) = error.clone().into_server_errors()
            && let Some((index, first)) = failures.first()
        {
            let (command, error, whole) =
                error_tag::parse(first.code(), first.details().unwrap_or_default());
            return Error::Pipeline {
                failures: failures.len(),
                index: *index,
                command: command.unwrap_or_else(|| "a command".to_owned()),
                error,
                applied: whole.unwrap_or(Applied::Unknown),
            };
        }
        let unnamed = || "the command".to_owned();
        if let Some(code) = error.code() {
            let (command, error, _) = error_tag::parse(code, error.detail().unwrap_or_default());
            return Error::Command { command: command.unwrap_or_else(unnamed), error };
        }
        if let Some(error) = ServerError::of(&error) {
            return Error::Command { command: unnamed(), error };
        }
        match error.kind() {
            redis::ErrorKind::UnexpectedReturnType | redis::ErrorKind::Parse => {
                let text = error.to_string();
                let (command, found, applied) =
                    recent_replies::find(&text).unwrap_or((None, "a reply", Applied::Unknown));
                let command = command.unwrap_or_else(unnamed);
                let (expected, source) = ("the requested type", DecodeError::of(&text));
                Error::Decode { command, expected, found, applied, source }
            }
            _ => Error::Lost {
                during: unnamed(),
                applied: Applied::Unknown,
                source: ConnectionError::of(&error),
            },
        }
    }
}

fn own_error(error: &redis::RedisError) -> Option<Error> {
    connection::io_of(error)?.get_ref()?.downcast_ref::<Error>().cloned()
}
