//! The demo's own connections, and the one who kills them.
//!
//! Never: a connection of somebody else's. Only numbers that the server gave on a connection of
//! this program are killed, and a server never gives a number twice.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use rediscope::redis::{self, Connection, FromRedisValue, RedisResult, Value};

/// How many are killed at once in the middle of something; and one that is not.
const BUSY_VICTIMS: usize = 2;

/// The numbers (CLIENT ID) of this program's connections, those of dead ones included.
#[derive(Debug, Default)]
pub(crate) struct Links {
    known: Mutex<BTreeSet<i64>>,
}

impl Links {
    pub(crate) fn note(&self, id: i64) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
    }

    /// Of the clients the server has, those that are known to be this program's.
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
    /// How many commands wait for EXEC; -1 where there was no MULTI.
    queued: i64,
}

impl Client {
    /// Whether a transfer is half done on it.
    ///
    /// The transfers' connections see WATCH, MGET, MULTI … EXEC, UNWATCH and DISCARD, in this
    /// order and nothing else. So one that was last asked for WATCH or MGET, or stands in MULTI,
    /// has begun a transfer and not ended it: its account keys are watched, and its EXEC is yet to
    /// come, or lies unread in its socket.
    fn is_busy(&self) -> bool {
        self.queued >= 0 || matches!(self.last.as_str(), "watch" | "mget")
    }
}

/// What the killer has done so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Killed {
    pub(crate) all: u64,
    /// Those that were in the middle of a transfer.
    pub(crate) busy: u64,
}

/// Asks the server for its clients.
pub(crate) fn clients(admin: &mut Connection) -> RedisResult<Vec<Client>> {
    let list: String = redis::cmd("CLIENT").arg("LIST").query(admin)?;
    Ok(parse(&list))
}

/// Kills a few of the program's own connections.
///
/// Between choosing a victim and killing it the victim goes on; so what it was doing is asked once
/// more, in one transaction with the kill, and only that is counted.
pub(crate) fn kill_some(admin: &mut Connection, links: &Links) -> RedisResult<Killed> {
    let victims = choose(links.own(clients(admin)?));
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
    let (busy, quiet): (Vec<_>, Vec<_>) = own.iter().partition(|client| client.is_busy());
    busy.iter().take(BUSY_VICTIMS).chain(quiet.first()).map(|client| client.id).collect()
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
