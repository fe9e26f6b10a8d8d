//! What the server said when it refused: its code, and as much of its text as tells no secret.
//!
//! Never: a key or a value. Servers quote arguments in some messages, and scripts put anything
//! they like into theirs.

use std::fmt;

use crate::wire::refusal;

/// An error reply of the server.
///
/// The code is kept as the server gave it (`WRONGTYPE`, `OOM`, `NOPERM`, …). Of the text, what
/// stands in quotes and what repeats arguments is cut out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerError {
    code: String,
    message: String,
    /// Said by a script, for all that is known: it may have changed something before.
    from_script: bool,
}

/// Long enough for every sentence of the server, short enough for a log line.
const LONGEST_MESSAGE: usize = 160;
const LONGEST_CODE: usize = 32;

/// Codes whose text is the server's own, unless a script borrows one.
const SERVER_CODES: &[&str] = &[
    "ASK",
    "BUSY",
    "BUSYGROUP",
    "BUSYKEY",
    "CLUSTERDOWN",
    "CROSSSLOT",
    "ERR",
    "EXECABORT",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "MOVED",
    "NOAUTH",
    "NOGROUP",
    "NOPERM",
    "NOREPLICAS",
    "NOSCRIPT",
    "OOM",
    "READONLY",
    "TRYAGAIN",
    "UNBLOCKED",
    "WRONGPASS",
    "WRONGTYPE",
];
/// What the server adds to a script's errors.
const SCRIPT_MARKS: &[&str] = &["user_script", "user_function", " script: "];

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

    pub(crate) fn is_from_script(&self) -> bool {
        self.from_script
    }

    /// In our own words, where the server would say the same.
    pub(crate) fn own(code: &str, text: &str) -> Self {
        Self::new(code, text, false)
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
            _ => error.code().map(|code| Self::of_any(code, error.detail().unwrap_or_default())),
        }
    }

    /// Of one of this crate's own scripts. It may have written before it failed, and another one in
    /// the server's place may answer after it ran; so only the words prove that it did not run with
    /// which the server refuses to start a script.
    pub(crate) fn of_own_script(reply: &redis::ServerError) -> Self {
        let text = reply.details().unwrap_or_default();
        let inside = SCRIPT_MARKS.iter().any(|mark| text.contains(mark));
        let refused = !inside && refusal::refuses_to_start(reply.code(), text);
        Self { from_script: !refused, ..Self::from_reply(reply, false) }
    }

    /// Of a command that is not known here, and may have run a script.
    pub(crate) fn of_any(code: &str, text: &str) -> Self {
        let from_script =
            !SERVER_CODES.contains(&code) || SCRIPT_MARKS.iter().any(|mark| text.contains(mark));
        Self::new(code, text, from_script)
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
            (true, true) => (code, "the text is withheld: a script may have written it"),
            (false, _) => ("ERR", "the server's message is withheld: it has no code"),
        };
        Self { code: code.to_owned(), message: without_arguments(text), from_script }
    }
}

/// Cuts out what stands between the first quote and the last (a quoted key may hold quotes itself,
/// so no other one is sure to end it), and everything from where arguments are listed.
fn without_arguments(text: &str) -> String {
    let text = text.split(", with args").next().unwrap_or_default();
    let is_quote = |letter| matches!(letter, '\'' | '"' | '`');
    // An apostrophe inside a word ("can't") opens nothing.
    let opening = text
        .match_indices(is_quote)
        .map(|(at, _)| at)
        .find(|at| !text.get(..*at).is_some_and(|before| before.ends_with(char::is_alphanumeric)));
    let (head, tail) = match (opening, text.rfind(is_quote)) {
        (Some(from), Some(to)) => (text.get(..from), text.get(to + 1..)),
        _ => (Some(text), None),
    };
    let (cut, tail) = tail.map_or(("", ""), |tail| ("'…'", tail));
    let mut clean = String::with_capacity(text.len());
    for letter in [head.unwrap_or_default(), cut, tail].into_iter().flat_map(str::chars) {
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
        assert_eq!(denied.to_string(), "NOPERM User bob can't access the '…' key");
        let quoted = ServerError::new("NOGROUP", "No such key 'it's 'secret' in XREAD", false);
        assert_eq!(quoted.to_string(), "NOGROUP No such key '…' in XREAD");
        assert!(!ServerError::new("secret", "secret", false).to_string().contains("secret"));
        assert!(!ServerError::new("ERR", "secret", true).to_string().contains("secret"));
    }

    #[test]
    fn a_script_of_ours_that_was_stopped_half_way_may_have_written() {
        let of = |line: &[u8]| match redis::parse_redis_value(line) {
            Ok(redis::Value::ServerError(error)) => ServerError::of_own_script(&error),
            other => unreachable!("{other:?}"),
        };
        let inside =
            of(b"-ERR The user executing the script can't run this command or subcommand \
            script: 270c461d647baf1cf9ece0ce2c1ce9437be27707, on @user_script:1.\r\n");
        assert!(inside.is_from_script() && inside.message().starts_with("The user"), "{inside}");
        let before = of(b"-NOPERM this user has no permissions to run the 'evalsha' command\r\n");
        assert!(!before.is_from_script());
        let full = of(b"-OOM command not allowed when used memory > 'maxmemory'. \
            script: 270c461d647baf1cf9ece0ce2c1ce9437be27707, on @user_script:1.\r\n");
        assert!(full.is_from_script() && full.is_transient());
        for line in ["-OOM no", "-ERR upstream timed out", "-NOPERM no", "-LOADING", "-MOVED away"]
        {
            let error = of(format!("{line}\r\n").as_bytes());
            assert!(error.is_from_script(), "{line}");
        }
        for line in [
            "-MOVED 3999 127.0.0.1:6381",
            "-ERR unknown command 'EVALSHA', with args beginning with: ",
        ] {
            let error = of(format!("{line}\r\n").as_bytes());
            assert!(!error.is_from_script(), "{line}");
        }
    }
}
