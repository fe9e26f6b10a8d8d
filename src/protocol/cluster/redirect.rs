//! Errors of a cluster's node that redirect or postpone a command.
//!
//! Each of them proves that nothing was applied.

use redis::Value;

/// An error of a cluster's node that redirects or postpones a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RedirectReply {
    /// The slot belongs to another node.
    Moved { slot: u16, to: RedirectTarget },
    /// The slot is migrating, and these keys are there already: only for this command.
    Ask { slot: u16, to: RedirectTarget },
    /// The slot is migrating or unserved: retry later.
    TryAgain,
}

/// A node's address as another node returns it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RedirectTarget {
    /// Empty: the host of the node that returned it.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl RedirectReply {
    /// The slot of the redirect.
    pub(crate) fn slot(&self) -> Option<u16> {
        match self {
            Self::Moved { slot, .. } | Self::Ask { slot, .. } => Some(*slot),
            Self::TryAgain => None,
        }
    }

    /// Whether errors with this code redirect or postpone a command.
    pub(crate) fn has_code(code: &str) -> bool {
        matches!(code, "MOVED" | "ASK" | "TRYAGAIN" | "CLUSTERDOWN" | "MASTERDOWN" | "LOADING")
    }

    /// Parses an error's code and text.
    pub(crate) fn of(code: &str, text: &str) -> Option<Self> {
        match code {
            "TRYAGAIN" | "CLUSTERDOWN" | "MASTERDOWN" | "LOADING" => Some(Self::TryAgain),
            "MOVED" | "ASK" => {
                let (slot, address) = text.split_once(' ')?;
                let slot = slot.parse().ok()?;
                let (host, port) = address.trim().rsplit_once(':')?;
                let port = port.parse().ok()?;
                // `?` is an unset host name; the redirecting node does not know it either.
                let host = if host == "?" { "" } else { host };
                let to = RedirectTarget { host: host.to_owned(), port };
                Some(if code == "MOVED" {
                    Self::Moved { slot, to }
                } else {
                    Self::Ask { slot, to }
                })
            }
            _ => None,
        }
    }
}

/// The reply of a command that was sent after ASKING. If ASKING was rejected, its error replaces a
/// redirect, which would lead back to the source.
pub(crate) fn after_asking(asked: Value, answer: Value) -> Value {
    match (&asked, &answer) {
        (Value::ServerError(_), Value::ServerError(error))
            if RedirectReply::of(error.code(), error.details().unwrap_or_default()).is_some() =>
        {
            asked
        }
        _ => answer,
    }
}

/// The replies of commands that were each sent after ASKING.
pub(crate) fn all_after_asking(values: impl IntoIterator<Item = Value>) -> Vec<Value> {
    let mut values = values.into_iter();
    let mut answers = Vec::new();
    while let (Some(asked), Some(answer)) = (values.next(), values.next()) {
        answers.push(after_asking(asked, answer));
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirect_errors_are_parsed() {
        let to = |host: &str, port| RedirectTarget { host: host.to_owned(), port };
        let of = |text: &str| {
            text.split_once(' ').and_then(|(code, rest)| RedirectReply::of(code, rest))
        };
        let moved = |slot, to| Some(RedirectReply::Moved { slot, to });
        assert_eq!(of("MOVED 3999 127.0.0.1:6381"), moved(3999, to("127.0.0.1", 6381)));
        assert_eq!(of("MOVED 3999 :6381"), moved(3999, to("", 6381)));
        assert_eq!(of("MOVED 3999 ?:6381"), moved(3999, to("", 6381)));
        assert_eq!(of("MOVED 1 ::1:6381"), moved(1, to("::1", 6381)));
        assert_eq!(of("ASK 7 a.b:1"), Some(RedirectReply::Ask { slot: 7, to: to("a.b", 1) }));
        assert_eq!(of("TRYAGAIN Multiple keys"), Some(RedirectReply::TryAgain));
        for strange in ["MOVED", "MOVED x 127.0.0.1:1", "ASK 7 nowhere", "ASK 7 a:b", "CROSSSLOT x"]
        {
            assert_eq!(of(strange), None, "{strange}");
        }
    }
}
