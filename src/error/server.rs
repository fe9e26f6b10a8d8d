//! What the server said when it refused: its code, and as much of its text as tells no secret.
//!
//! Never: a key or a value. Servers quote arguments in some messages, and scripts put anything
//! they like into theirs.

use std::fmt;

/// An error reply of the server.
///
/// The code is kept as the server gave it (`WRONGTYPE`, `OOM`, `NOPERM`, …). Of the text, what
/// stands in quotes and what repeats arguments is cut out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerError {
    code: String,
    message: String,
}

/// Long enough for every sentence of the server, short enough for a log line.
const LONGEST_MESSAGE: usize = 160;
const LONGEST_CODE: usize = 32;

impl ServerError {
    /// The first word of the reply, such as `WRONGTYPE`.
    pub fn code(&self) -> &str {
        &self.code
    }

    /// The rest of the reply, without anything that repeats keys or values.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Whether the refusal is of the server's present state and may pass, with the request as it
    /// is: loading, failing over, read-only, out of memory, too few replicas.
    pub fn is_transient(&self) -> bool {
        matches!(
            self.code(),
            "LOADING"
                | "BUSY"
                | "TRYAGAIN"
                | "MOVED"
                | "ASK"
                | "CLUSTERDOWN"
                | "MASTERDOWN"
                | "READONLY"
                | "NOREPLICAS"
                | "OOM"
                | "MISCONF"
                | "UNBLOCKED"
        )
    }

    pub(crate) fn from_code(code: &str) -> Self {
        Self::new(code, "", false)
    }

    pub(crate) fn from_reply(reply: &redis::ServerError, from_script: bool) -> Self {
        Self::new(reply.code(), reply.details().unwrap_or_default(), from_script)
    }

    /// `None` where the error did not come from the server.
    pub(crate) fn of(error: &redis::RedisError) -> Option<Self> {
        match error.kind() {
            redis::ErrorKind::AuthenticationFailed => {
                Some(Self::new("WRONGPASS", "the server refused user or password", false))
            }
            redis::ErrorKind::RESP3NotSupported => {
                Some(Self::new("NOPROTO", "the server does not speak RESP3", false))
            }
            _ => {
                error.code().map(|code| Self::new(code, error.detail().unwrap_or_default(), false))
            }
        }
    }

    /// The refusal behind `EXECABORT Transaction discarded because of: <code> <text>`.
    pub(crate) fn cause_of_abort(reply: &redis::ServerError) -> Self {
        let text = reply.details().unwrap_or_default();
        match text.split_once("because of: ") {
            Some((_, cause)) => {
                let cause = cause.trim_start_matches('-');
                let (code, text) = cause.split_once(' ').unwrap_or((cause, ""));
                Self::new(code, text, false)
            }
            None => Self::from_reply(reply, false),
        }
    }

    fn new(code: &str, text: &str, from_script: bool) -> Self {
        let is_code = code.len() <= LONGEST_CODE
            && code.starts_with(|first: char| first.is_ascii_uppercase())
            && code.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
        // A script's error may begin and go on with anything.
        let (code, text) = match (is_code, from_script) {
            (true, false) => (code, text),
            (true, true) => (code, "the script failed"),
            (false, _) => ("ERR", "the server's message is withheld: it has no code"),
        };
        Self { code: code.to_owned(), message: without_arguments(text) }
    }
}

/// Cuts out quoted words, and everything from where arguments are listed.
fn without_arguments(text: &str) -> String {
    let text = text.split(", with args").next().unwrap_or_default();
    let mut clean = String::with_capacity(text.len());
    let mut quote = None;
    for (at, letter) in text.char_indices() {
        match quote {
            Some(open) if letter == open => quote = None,
            Some(_) => continue,
            // An apostrophe inside a word ("can't") opens nothing.
            None if matches!(letter, '\'' | '"' | '`')
                && !text.get(..at).is_some_and(|b| b.ends_with(char::is_alphanumeric)) =>
            {
                quote = Some(letter);
                clean.push_str("'…");
                continue;
            }
            None => {}
        }
        if clean.len() + letter.len_utf8() > LONGEST_MESSAGE {
            break;
        }
        clean.push(if letter.is_control() { ' ' } else { letter });
    }
    clean
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.code)?;
        if !self.message.is_empty() {
            write!(f, " {}", self.message)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_cut_out_of_messages() {
        let unknown = ServerError::new(
            "ERR",
            "unknown command 'FOO', with args beginning with: 'secret' 'secret'",
            false,
        );
        assert_eq!(unknown.to_string(), "ERR unknown command '…'");
        let denied = ServerError::new("NOPERM", "User bob can't access the \"secret\" key", false);
        assert_eq!(denied.to_string(), "NOPERM User bob can't access the '…\" key");
        assert!(!ServerError::new("secret", "secret", false).to_string().contains("secret"));
        assert!(!ServerError::new("ERR", "secret", true).to_string().contains("secret"));
    }
}
