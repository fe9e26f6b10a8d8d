//! An error reply of the server: its code, and its text without secrets.
//!
//! Servers quote arguments in some texts, and scripts write anything into theirs. So only texts of
//! a table are shown, without their arguments.

use std::borrow::Cow;
use std::fmt;

use crate::protocol::cluster::redirect::RedirectReply;
use crate::protocol::command::table::is_read_only;
use crate::protocol::command::table::is_script;
use crate::protocol::known_errors;

/// An error reply of the server.
///
/// The code is kept as the server sent it (`WRONGTYPE`, `OOM`, `NOPERM`, …). The text is shown only
/// if it is one of the server's own, with each argument replaced by `…`. Any other text may repeat
/// keys and values, so only the code is shown. With
/// [`server_messages`](crate::Builder::server_messages) the text is shown as it was sent.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerError(Box<Parts>);

#[derive(Clone, PartialEq, Eq)]
struct Parts {
    code: String,
    /// The text as it was sent: for decisions, and shown only on request.
    text: String,
    shown: Cow<'static, str>,
    /// A script may have returned it, after an effect.
    from_script: bool,
    /// The error proves that its command had no effect.
    changed_nothing: bool,
}

/// Maximum length of a kept text: every text of a table fits.
const LONGEST_TEXT: usize = 512;
const LONGEST_CODE: usize = 32;

/// Words that the server adds to a script's errors.
const SCRIPT_MARKS: &[&str] = &["user_script", "user_function", " script: "];

impl ServerError {
    /// The first word of the reply, such as `WRONGTYPE`.
    pub fn code(&self) -> &str {
        &self.0.code
    }

    /// The rest of the reply if it repeats no key or value; else empty.
    pub fn message(&self) -> &str {
        &self.0.shown
    }

    /// Whether the error is about the server's present state and may pass, with the request
    /// unchanged: loading, failing over, read-only, out of memory, too few replicas.
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

    /// Whether a server that replies with this code is no master any more.
    pub(crate) fn is_of_replica(code: &str) -> bool {
        matches!(code, "READONLY" | "MASTERDOWN")
    }

    pub(crate) fn is_from_script(&self) -> bool {
        self.0.from_script
    }

    /// Whether the rejected command had no effect.
    pub(crate) fn changed_nothing(&self) -> bool {
        self.0.changed_nothing
    }

    /// Shows the text as it was sent if `full`.
    pub(crate) fn with_full_text(mut self, full: bool) -> Self {
        if full {
            self.0.shown = Cow::Owned(self.0.text.clone());
        }
        self
    }

    /// An error that the library made, with a code of the server's.
    pub(crate) fn synthetic(code: &str, text: &str) -> Self {
        let mut error = Self::new(code, text, false);
        error.0.shown = Cow::Owned(text.to_owned());
        error
    }

    pub(crate) fn from_code(code: &str) -> Self {
        Self::new(code, "", false)
    }

    /// For a command of the library's own, or one whose effect is decided elsewhere.
    pub(crate) fn from_reply(reply: &redis::ServerError, from_script: bool) -> Self {
        Self::new(reply.code(), reply.details().unwrap_or_default(), from_script)
    }

    /// For a single command: its name and the error's text decide whether it had an effect.
    pub(crate) fn of_command(name: &[u8], sub: Option<&[u8]>, reply: &redis::ServerError) -> Self {
        let changed_nothing =
            is_read_only(name, sub) || known_errors::proves_no_effect(name, reply);
        Self::from_reply(reply, is_script(name)).with_changed_nothing(changed_nothing)
    }

    /// For a command inside a transaction that ran.
    pub(crate) fn of_queued(name: &[u8], reply: &redis::ServerError) -> Self {
        let changed_nothing = known_errors::queued_without_effect(name, reply);
        Self::from_reply(reply, is_script(name)).with_changed_nothing(changed_nothing)
    }

    /// For a command that only reads.
    pub(crate) fn of_read(name: &[u8], reply: &redis::ServerError) -> Self {
        Self::from_reply(reply, is_script(name)).with_changed_nothing(true)
    }

    /// For an error of the pooled handle that was carried through a `RedisError`, with its text and
    /// its effect.
    pub(crate) fn restored(
        code: &str,
        shown: &str,
        from_script: bool,
        changed_nothing: bool,
    ) -> Self {
        let mut error = Self::synthetic(code, shown).with_changed_nothing(changed_nothing);
        error.0.from_script = from_script;
        error
    }

    fn with_changed_nothing(mut self, changed_nothing: bool) -> Self {
        self.0.changed_nothing = changed_nothing;
        self
    }

    /// `None` if the error is not a server's.
    pub(crate) fn of(error: &redis::RedisError) -> Option<Self> {
        match error.kind() {
            redis::ErrorKind::AuthenticationFailed => {
                Some(Self::synthetic("WRONGPASS", "the server refused user or password"))
            }
            redis::ErrorKind::RESP3NotSupported => {
                Some(Self::synthetic("NOPROTO", "the server does not speak RESP3"))
            }
            _ => error.code().map(|code| Self::of_any(code, error.detail().unwrap_or_default())),
        }
    }

    /// For one of the library's own scripts. It may have written before it failed, and a proxy may
    /// reply after it ran. So only texts with which the server rejects a script before it starts
    /// prove that it did not run.
    pub(crate) fn of_own_script(reply: &redis::ServerError) -> Self {
        let text = reply.details().unwrap_or_default();
        let inside = SCRIPT_MARKS.iter().any(|mark| text.contains(mark));
        let refused = !inside && known_errors::rejects_before_start(reply.code(), text);
        let mut error = Self::from_reply(reply, false).with_changed_nothing(refused);
        error.0.from_script = !refused;
        error
    }

    /// The same refusal behind another copy of the call, which may have run.
    pub(crate) fn behind_a_copy(mut self) -> Self {
        self.0.from_script = true;
        self.with_changed_nothing(false)
    }

    /// For an unknown command, which may have run a script.
    pub(crate) fn of_any(code: &str, text: &str) -> Self {
        let from_script =
            !known_errors::has_code(code) || SCRIPT_MARKS.iter().any(|mark| text.contains(mark));
        Self::new(code, text, from_script).with_changed_nothing(false)
    }

    /// The cause within `EXECABORT Transaction discarded because of: <code> <text>`.
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
        let text = one_line(text);
        let (code, shown) = match (is_code(code), from_script) {
            (true, false) => (code, redacted(code, &text)),
            // A script's error may begin and continue with anything.
            (true, true) => {
                (code, Cow::Borrowed("the text is withheld: a script may have written it"))
            }
            (false, _) => {
                ("ERR", Cow::Borrowed("the server's message is withheld: it has no code"))
            }
        };
        Self(Box::new(Parts {
            code: code.to_owned(),
            text,
            shown,
            from_script,
            changed_nothing: !from_script,
        }))
    }
}

/// Whether a reply's first word has the form of a code.
fn is_code(code: &str) -> bool {
    code.len() <= LONGEST_CODE
        && code.starts_with(|first: char| first.is_ascii_uppercase())
        && code.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
}

/// The text without arguments.
fn redacted(code: &str, text: &str) -> Cow<'static, str> {
    // A slot and an address are the server's own, and are followed.
    let is_address = |address: &str| address.bytes().all(|byte| byte.is_ascii_graphic());
    if matches!(code, "MOVED" | "ASK")
        && RedirectReply::of(code, text).is_some()
        && text.split_once(' ').is_some_and(|(_, address)| is_address(address))
    {
        return Cow::Owned(text.to_owned());
    }
    // The server appends the place at which a script of this crate stopped.
    let text = text.split(" script: ").next().unwrap_or_default();
    Cow::Borrowed(known_errors::redacted(code, text).unwrap_or_default())
}

/// A text as one line of bounded length.
fn one_line(text: &str) -> String {
    text.chars()
        .take(LONGEST_TEXT)
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .collect()
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.code)?;
        if !self.0.shown.is_empty() {
            write!(f, " {}", self.0.shown)?;
        }
        Ok(())
    }
}

/// Shows what `Display` shows.
impl fmt::Debug for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerError")
            .field("code", &self.0.code)
            .field("message", &self.0.shown)
            .finish_non_exhaustive()
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
        let shown = "ERR unknown command '…', with args beginning with: …";
        assert_eq!(unknown.to_string(), shown);
        for (code, text, shown) in [
            ("NOPERM", "User bob has no permissions to access the 'secret' key", true),
            ("NOGROUP", "No such key 'it's 'secret' or consumer group 'secret'", true),
            ("ERR", "invalid longitude,latitude pair 200.000000,100.000000", true),
            ("ERR", "a sentence that is in no table, about secret", false),
        ] {
            let error = ServerError::new(code, text, false);
            let line = error.to_string();
            assert!(!line.contains("secret") && !line.contains("200"), "{line}");
            assert!(!format!("{error:?}").contains("secret"), "{error:?}");
            assert_eq!(line != code, shown, "{line}");
            assert_eq!(error.with_full_text(true).to_string(), format!("{code} {text}"));
        }
        for host in ["redis_1", "fe80::1%eth0", "[::1]", "a.b", "", "?"] {
            for code in ["MOVED", "ASK"] {
                let text = format!("7 {host}:6379");
                assert_eq!(ServerError::new(code, &text, false).message(), text);
            }
        }
        assert_eq!(ServerError::new("MOVED", "7 secret secret:6379", false).message(), "");
        assert!(!ServerError::new("secret", "secret", false).to_string().contains("secret"));
        assert!(!ServerError::new("ERR", "secret", true).to_string().contains("secret"));
    }

    #[test]
    fn an_own_script_that_stopped_in_between_may_have_written() {
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
