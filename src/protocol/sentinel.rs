//! What sentinels and servers say of who is the master, understood.
//!
//! Never: a question to a sentinel. [`Directory`](crate::connection::sentinel::client::Directory) asks.

use redis::Value;

use crate::protocol::resp::fields::{field, text};
use crate::protocol::server_error::ServerError;

/// A sentinel's reply that names no master.
#[derive(Debug)]
pub(crate) enum SentinelError {
    Refused(ServerError),
    Unexpected(&'static str),
}

/// What one sentinel knows of a master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MasterReport {
    /// How many switches of masters the sentinels have agreed upon. One that knows of fewer knows
    /// less.
    pub(crate) epoch: u64,
    pub(crate) master: HostPort,
    /// Those that are up and in step.
    pub(crate) replicas: Vec<HostPort>,
}

/// Where a server is.
pub(crate) type HostPort = (String, u16);

/// The answers to SENTINEL MASTER, GET-MASTER-ADDR-BY-NAME and REPLICAS of one name.
pub(crate) fn parse(answers: &[Value]) -> Result<MasterReport, SentinelError> {
    for answer in answers {
        if let Value::ServerError(error) = answer {
            return Err(SentinelError::Refused(ServerError::from_reply(error, false)));
        }
    }
    let strange = || SentinelError::Unexpected("a sentinel's answer of another kind");
    let [master, address, replicas] = answers else { return Err(strange()) };
    let word = |of, name| field(of, name).and_then(text);
    let epoch = word(master, "config-epoch").and_then(|epoch| epoch.parse().ok());
    let Value::Array(parts) = address else {
        return Err(SentinelError::Unexpected("the sentinel knows no master of that name"));
    };
    let place = match &parts[..] {
        [host, port] => text(host).zip(text(port).and_then(|port| port.parse().ok())),
        _ => None,
    };
    let (host, port) = place.ok_or_else(strange)?;
    let Value::Array(replicas) = replicas else { return Err(strange()) };
    Ok(MasterReport {
        epoch: epoch.ok_or_else(strange)?,
        master: (host.to_owned(), port),
        replicas: replicas.iter().filter_map(readable_address).collect(),
    })
}

/// Where the replica is, if it may be read from.
fn readable_address(replica: &Value) -> Option<HostPort> {
    let word = |name| field(replica, name).and_then(text);
    let flags = word("flags")?;
    let down = flags.split(',').any(|flag| matches!(flag, "s_down" | "o_down" | "disconnected"));
    let in_step = word("master-link-status") == Some("ok");
    let port = word("port")?.parse().ok()?;
    (!down && in_step).then_some((word("ip")?.to_owned(), port))
}

/// What is wrong with a server that was taken for a master, by its answer to ROLE.
pub(crate) fn why_not_master(role: &Value) -> Option<&'static str> {
    (first(role) != Some("master"))
        .then_some("the server that sentinels name is not a master, or not yet")
}

/// The same for a server that is to be read from.
pub(crate) fn why_not_readable(role: &Value) -> Option<&'static str> {
    let Value::Array(parts) = role else { return Some("the server did not say its role") };
    let in_step = parts.get(3).and_then(text) == Some("connected");
    match first(role) {
        Some("master") => None,
        Some("slave") if in_step => None,
        _ => Some("the replica is not in step with its master"),
    }
}

fn first(role: &Value) -> Option<&str> {
    match role {
        Value::Array(parts) => parts.first().and_then(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn list(words: &[&str]) -> Value {
        Value::Array(words.iter().map(|word| bulk(word)).collect())
    }

    #[test]
    fn epoch_address_and_the_replicas_in_step_are_understood() {
        let replica = |port, flags, link| {
            list(&["ip", "h", "port", port, "flags", flags, "master-link-status", link])
        };
        let replicas = Value::Array(vec![
            replica("2", "slave", "ok"),
            replica("3", "slave", "err"),
            replica("4", "s_down,slave", "ok"),
        ]);
        let answers =
            [list(&["name", "m", "config-epoch", "7"]), list(&["10.0.0.1", "6379"]), replicas];
        let answer = parse(&answers).unwrap();
        assert_eq!((answer.epoch, answer.master), (7, ("10.0.0.1".to_owned(), 6379)));
        assert_eq!(answer.replicas, [("h".to_owned(), 2)]);
        assert!(parse(&answers[..2]).is_err());
        assert!(parse(&[Value::Okay, Value::Nil, Value::Nil]).is_err());
    }

    #[test]
    fn a_replica_is_no_master_and_one_that_lags_is_not_read_from() {
        let slave =
            |state| Value::Array(vec![bulk("slave"), bulk("h"), Value::Int(1), bulk(state)]);
        assert!(why_not_master(&slave("connected")).is_some());
        assert!(why_not_master(&list(&["master"])).is_none());
        assert!(why_not_readable(&slave("connected")).is_none());
        assert!(why_not_readable(&slave("sync")).is_some());
        assert!(why_not_readable(&Value::Okay).is_some());
    }
}
