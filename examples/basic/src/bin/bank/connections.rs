//! Kills the demo's own connections.
//!
//! Never: a connection of another program. A connection is killed by its CLIENT ID, only if this
//! program read that ID on it; a server gives each ID once.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use rediscope::redis::{self, Connection, FromRedisValue, RedisResult, Value};

/// Connections killed at once in the middle of a transfer; one idle connection is added.
const BUSY_VICTIMS: usize = 2;

/// The IDs (CLIENT ID) of this program's connections, closed ones included.
#[derive(Debug, Default)]
pub(crate) struct OwnConnections {
    known: Mutex<BTreeSet<i64>>,
}

impl OwnConnections {
    pub(crate) fn add(&self, id: i64) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
    }

    /// Those of `clients` that are known to be this program's.
    pub(crate) fn own(&self, clients: Vec<Client>) -> Vec<Client> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        clients.into_iter().filter(|client| known.contains(&client.id)).collect()
    }
}

/// One line of CLIENT LIST.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) id: i64,
    /// The last command that was run or queued.
    last: String,
    /// Number of commands queued for EXEC; -1 without MULTI.
    queued: i64,
}

impl Client {
    /// Whether it is in the middle of a transfer.
    ///
    /// A transfer sends WATCH, MGET, MULTI … EXEC, UNWATCH and DISCARD, in this order. So a last
    /// command WATCH or MGET, or an open MULTI, means a transfer that has not ended: its keys are
    /// watched, and its EXEC was not sent or not yet read by the server.
    fn is_busy(&self) -> bool {
        self.queued >= 0 || matches!(self.last.as_str(), "watch" | "mget")
    }
}

/// Number of killed connections.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Killed {
    pub(crate) all: u64,
    /// Those killed in the middle of a transfer.
    pub(crate) busy: u64,
}

/// The clients of the server, by CLIENT LIST.
pub(crate) fn clients(admin: &mut Connection) -> RedisResult<Vec<Client>> {
    let list: String = redis::cmd("CLIENT").arg("LIST").query(admin)?;
    Ok(parse(&list))
}

/// Kills a few of the program's own connections.
///
/// A chosen connection goes on until it is killed. So its state is read once more, in one
/// transaction with the kill, and that state is counted.
pub(crate) fn kill_some(admin: &mut Connection, own: &OwnConnections) -> RedisResult<Killed> {
    let victims = choose(own.own(clients(admin)?));
    if victims.is_empty() {
        return Ok(Killed::default());
    }
    let mut pipe = redis::pipe();
    pipe.atomic().cmd("CLIENT").arg("LIST").arg("ID").arg(&victims);
    for id in &victims {
        pipe.cmd("CLIENT").arg("KILL").arg("ID").arg(id);
    }
    let mut replies = pipe.query::<Vec<Value>>(admin)?.into_iter();
    let list = replies.next().map(String::from_redis_value).transpose()?.unwrap_or_default();
    let seen: HashMap<_, _> = parse(&list).into_iter().map(|c| (c.id, c.is_busy())).collect();
    let mut killed = Killed::default();
    for (id, reply) in victims.iter().zip(replies) {
        if reply == Value::Int(1) {
            killed.all += 1;
            killed.busy += u64::from(seen.get(id) == Some(&true));
        }
    }
    Ok(killed)
}

fn choose(mut own: Vec<Client>) -> Vec<i64> {
    fastrand::shuffle(&mut own);
    let (busy, idle): (Vec<_>, Vec<_>) = own.iter().partition(|client| client.is_busy());
    busy.iter().take(BUSY_VICTIMS).chain(idle.first()).map(|client| client.id).collect()
}

fn parse(list: &str) -> Vec<Client> {
    list.lines()
        .filter_map(|line| {
            let fields: HashMap<_, _> =
                line.split(' ').filter_map(|field| field.split_once('=')).collect();
            Some(Client {
                id: fields.get("id")?.parse().ok()?,
                last: (*fields.get("cmd")?).to_owned(),
                queued: fields.get("multi")?.parse().ok()?,
            })
        })
        .collect()
}
