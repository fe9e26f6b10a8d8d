//! Parses the replies of sentinels, and of servers to ROLE.

use redis::Value;

use crate::protocol::resp::encode::{self, EncodedCommand};
use crate::protocol::resp::fields::{field, text};
use crate::protocol::server_error::ServerError;

/// A sentinel's reply that names no master.
#[derive(Debug)]
pub(crate) enum SentinelError {
    Refused(ServerError),
    Unexpected(&'static str),
}

/// One sentinel's report about a master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MasterReport {
    /// Number of failovers that the sentinels agreed on. A sentinel with a lower number is
    /// outdated.
    pub(crate) epoch: u64,
    pub(crate) master: HostPort,
    /// The replicas that are up and in sync.
    pub(crate) replicas: Vec<HostPort>,
}

/// The address of a server.
pub(crate) type HostPort = (String, u16);

/// Number of replies to the query about a master.
pub(crate) const ANSWERS: usize = 3;

/// Encodes the query about the master of this name.
pub(crate) fn question(name: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(200);
    // The epoch comes first: an address may be newer than it, never older.
    for what in ["MASTER", "GET-MASTER-ADDR-BY-NAME", "REPLICAS"] {
        encode::command_with(&mut bytes, &EncodedCommand::new(&["SENTINEL", what]), name);
    }
    bytes
}

/// Parses the replies to SENTINEL MASTER, GET-MASTER-ADDR-BY-NAME and REPLICAS of one name.
pub(crate) fn parse(answers: &[Value]) -> Result<MasterReport, SentinelError> {
    for answer in answers {
        if let Value::ServerError(error) = answer {
            return Err(SentinelError::Refused(ServerError::from_reply(error, false)));
        }
    }
    let unexpected = || SentinelError::Unexpected("unexpected reply of a sentinel");
    let [master, address, replicas] = answers else { return Err(unexpected()) };
    let word = |of, name| field(of, name).and_then(text);
    let epoch = word(master, "config-epoch").and_then(|epoch| epoch.parse().ok());
    let Value::Array(parts) = address else {
        return Err(SentinelError::Unexpected("the sentinel has no master of that name"));
    };
    let place = match &parts[..] {
        [host, port] => text(host).zip(text(port).and_then(|port| port.parse().ok())),
        _ => None,
    };
    let (host, port) = place.ok_or_else(unexpected)?;
    let Value::Array(replicas) = replicas else { return Err(unexpected()) };
    Ok(MasterReport {
        epoch: epoch.ok_or_else(unexpected)?,
        master: (host.to_owned(), port),
        replicas: replicas.iter().filter_map(readable_address).collect(),
    })
}

/// The replica's address, if it may be read from.
fn readable_address(replica: &Value) -> Option<HostPort> {
    let word = |name| field(replica, name).and_then(text);
    let flags = word("flags")?;
    let down = flags.split(',').any(|flag| matches!(flag, "s_down" | "o_down" | "disconnected"));
    let in_step = word("master-link-status") == Some("ok");
    let port = word("port")?.parse().ok()?;
    (!down && in_step).then_some((word("ip")?.to_owned(), port))
}

/// Why a supposed master is none, by its reply to ROLE.
pub(crate) fn why_not_master(role: &Value) -> Option<&'static str> {
    (first(role) != Some("master"))
        .then_some("the server named by the sentinels is not a master, or not yet")
}

/// Why a server must not be read from, by its reply to ROLE.
pub(crate) fn why_not_readable(role: &Value) -> Option<&'static str> {
    let Value::Array(parts) = role else { return Some("the server returned no role") };
    let in_step = parts.get(3).and_then(text) == Some("connected");
    match first(role) {
        Some("master") => None,
        Some("slave") if in_step => None,
        _ => Some("the replica is not in sync with its master"),
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
    fn epoch_address_and_replicas_in_sync_are_parsed() {
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
