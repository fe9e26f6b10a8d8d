//! What a cluster's node says when it is not the one to ask.
//!
//! All of it means that nothing was applied.
//!
//! Never: an address made up. Where the node leaves the host out, it is the node's own.

#![cfg_attr(
    not(feature = "cluster"),
    allow(dead_code, reason = "one server has all slots and sends nobody on")
)]

use redis::Value;

/// What a cluster's node says when it is not the one to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RedirectReply {
    /// The slot is another node's, from now on.
    Moved { slot: u16, to: RedirectTarget },
    /// The slot is on its way, and what was asked for is there already: this once.
    Ask { slot: u16, to: RedirectTarget },
    /// The slot is on its way, or nobody's: in a moment.
    TryAgain,
}

/// A node's address as another one gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RedirectTarget {
    /// Empty: the host of the node that says so.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl RedirectReply {
    /// Which slot it is about.
    pub(crate) fn slot(&self) -> Option<u16> {
        match self {
            Self::Moved { slot, .. } | Self::Ask { slot, .. } => Some(*slot),
            Self::TryAgain => None,
        }
    }

    /// Of an error reply's code and text.
    pub(crate) fn of(code: &str, text: &str) -> Option<Self> {
        match code {
            "TRYAGAIN" | "CLUSTERDOWN" | "MASTERDOWN" | "LOADING" => Some(Self::TryAgain),
            "MOVED" | "ASK" => {
                let (slot, address) = text.split_once(' ')?;
                let slot = slot.parse().ok()?;
                let (host, port) = address.trim().rsplit_once(':')?;
                let port = port.parse().ok()?;
                // Nobody can be reached there; the node does not know either.
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

/// What stands for the answer to a command that was sent behind ASKING. Who may not say ASKING is
/// told so, and not that the slot is still where he came from.
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

/// The answers to commands each of which was sent behind ASKING.
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
    fn a_redirection_is_read_as_it_is_written() {
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
