//! The replication that a commit waits for before the call returns.
//!
//! Too few acknowledgements undo nothing.

use std::fmt;
use std::time::Duration;

use redis::Value;

use crate::protocol::marker::millis;
use crate::protocol::resp::encode::{self, words};
use crate::protocol::server_error::ServerError;

/// The servers that had a transaction when the call returned, as counted by WAIT or WAITAOF.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct ReplicaAcks {
    /// 1 if the server itself had synchronised it to its append-only file.
    pub local: u32,
    /// Replicas that had it: in memory (WAIT), or on disk (WAITAOF).
    pub replicas: u32,
}

impl fmt::Display for ReplicaAcks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let disk = if self.local == 0 { "" } else { "the local disk and " };
        let ending = if self.replicas == 1 { "" } else { "s" };
        write!(f, "{disk}{} replica{ending}", self.replicas)
    }
}

/// The replication that a commit waits for after EXEC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    Replicas { replicas: u32, timeout: Duration },
    Aof { local: bool, replicas: u32, timeout: Duration },
}

impl Durability {
    pub(crate) fn timeout(&self) -> Duration {
        let (Self::Replicas { timeout, .. } | Self::Aof { timeout, .. }) = self;
        *timeout
    }

    pub(crate) fn wanted(&self) -> ReplicaAcks {
        match *self {
            Self::Replicas { replicas, .. } => ReplicaAcks { local: 0, replicas },
            Self::Aof { local, replicas, .. } => ReplicaAcks { local: local.into(), replicas },
        }
    }

    /// Appends the command. Its timeout is never 0, which would wait forever.
    pub(crate) fn write(&self, bytes: &mut Vec<u8>) {
        let (wanted, timeout) = (self.wanted(), millis(self.timeout()));
        match self {
            Self::Replicas { .. } => {
                encode::command_with(bytes, words!("WAIT"), (wanted.replicas, timeout));
            }
            Self::Aof { .. } => {
                let args = (wanted.local, wanted.replicas, timeout);
                encode::command_with(bytes, words!("WAITAOF"), args);
            }
        }
    }

    /// The counts in the command's reply, or the server's error.
    pub(crate) fn acks(&self, answer: &Value) -> Result<ReplicaAcks, ServerError> {
        let count = |value: &Value| match value {
            Value::Int(count) => u32::try_from(*count).unwrap_or_default(),
            _ => 0,
        };
        Ok(match (self, answer) {
            (_, Value::ServerError(error)) => return Err(ServerError::from_reply(error, false)),
            (Self::Replicas { .. }, replicas) => {
                ReplicaAcks { local: 0, replicas: count(replicas) }
            }
            (Self::Aof { .. }, Value::Array(counts)) if counts.len() == 2 => ReplicaAcks {
                local: counts.first().map(count).unwrap_or_default(),
                replicas: counts.get(1).map(count).unwrap_or_default(),
            },
            // It is not the command's reply.
            (Self::Aof { .. }, _) => ReplicaAcks::default(),
        })
    }

    pub(crate) fn is_met_by(&self, acks: ReplicaAcks) -> bool {
        let wanted = self.wanted();
        acks.local >= wanted.local && acks.replicas >= wanted.replicas
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_and_compared_one_by_one() {
        let timeout = Duration::ZERO;
        let wait = Durability::Replicas { replicas: 2, timeout };
        assert!(wait.is_met_by(wait.acks(&Value::Int(2)).unwrap()));
        assert!(!wait.is_met_by(wait.acks(&Value::Int(1)).unwrap()));
        let aof = Durability::Aof { local: true, replicas: 1, timeout };
        let counts = |local, replicas| Value::Array(vec![Value::Int(local), Value::Int(replicas)]);
        assert!(aof.is_met_by(aof.acks(&counts(1, 1)).unwrap()));
        assert!(!aof.is_met_by(aof.acks(&counts(0, 3)).unwrap()));
        assert!(!aof.is_met_by(aof.acks(&counts(1, 0)).unwrap()));
        let others = Value::Array(vec![Value::Int(1), Value::Int(2), Value::Int(3)]);
        assert_eq!(wait.acks(&counts(5, 7)).unwrap(), ReplicaAcks::default());
        assert_eq!(aof.acks(&Value::Int(2)).unwrap(), ReplicaAcks::default());
        assert_eq!(aof.acks(&others).unwrap(), ReplicaAcks::default());
    }

    #[test]
    fn nothing_waits_for_ever() {
        let mut bytes = Vec::new();
        Durability::Replicas { replicas: 1, timeout: Duration::ZERO }.write(&mut bytes);
        assert_eq!(bytes, b"*3\r\n$4\r\nWAIT\r\n$1\r\n1\r\n$1\r\n1\r\n");
    }
}
