//! Redis as a map: the effect of a few commands on a few keys.

use std::collections::BTreeMap;

use redis::{Cmd, Connection};

/// Every command may meet every key, so that some meet the wrong type.
pub(crate) const KEYS: [&str; 3] = ["k0", "k1", "k2"];

#[derive(Clone, Copy, Debug)]
pub(crate) enum Write {
    Incr(usize),
    Set(usize, u8),
    Append(usize, u8),
    Push(usize, u8),
    Del(usize),
    /// Refused by the server when it is queued.
    Unknown,
    /// Refused by this crate, by its name.
    Refused,
}

impl Write {
    pub(crate) fn command(self) -> Cmd {
        let (name, key, value) = match self {
            Self::Incr(key) => ("INCR", key, None),
            Self::Set(key, value) => ("SET", key, Some(value)),
            Self::Append(key, value) => ("APPEND", key, Some(value)),
            Self::Push(key, value) => ("RPUSH", key, Some(value)),
            Self::Del(key) => ("DEL", key, None),
            Self::Unknown => return redis::cmd("NOSUCHCOMMAND"),
            Self::Refused => return redis::cmd("WATCH").arg(KEYS[0]).take(),
        };
        redis::cmd(name).arg(KEYS[key]).arg(value).take()
    }

    pub(crate) fn is_refused(self) -> bool {
        matches!(self, Self::Unknown | Self::Refused)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Data {
    Text(String),
    List(Vec<String>),
}

/// How often each key was modified, in WATCH's sense of the word.
pub(crate) type Versions = [u64; KEYS.len()];

#[derive(Debug, Default)]
pub(crate) struct Model {
    data: BTreeMap<usize, Data>,
    pub(crate) versions: Versions,
}

impl Model {
    /// Runs a command on its own; returns whether it succeeded.
    pub(crate) fn apply(&mut self, write: Write) -> bool {
        let (key, new) = match write {
            Write::Unknown | Write::Refused => return false,
            Write::Del(key) => {
                self.versions[key] += u64::from(self.data.remove(&key).is_some());
                return true;
            }
            Write::Set(key, value) => (key, Some(Data::Text(value.to_string()))),
            Write::Incr(key) => (key, incremented(self.data.get(&key))),
            Write::Append(key, value) => (
                key,
                match self.data.get(&key) {
                    None => Some(Data::Text(value.to_string())),
                    Some(Data::Text(text)) => Some(Data::Text(format!("{text}{value}"))),
                    Some(Data::List(_)) => None,
                },
            ),
            Write::Push(key, value) => (
                key,
                match self.data.get(&key) {
                    None => Some(Data::List(vec![value.to_string()])),
                    Some(Data::List(list)) => {
                        Some(Data::List([&list[..], &[value.to_string()]].concat()))
                    }
                    Some(Data::Text(_)) => None,
                },
            ),
        };
        let Some(new) = new else { return false };
        self.data.insert(key, new);
        self.versions[key] += 1;
        true
    }

    /// Runs a whole transaction; returns how many of its commands failed.
    pub(crate) fn apply_all(&mut self, writes: &[Write]) -> usize {
        writes.iter().filter(|write| !self.apply(**write)).count()
    }

    /// The value under a key, as GET has it.
    pub(crate) fn text(&self, key: usize) -> Result<Option<&str>, ()> {
        match self.data.get(&key) {
            None => Ok(None),
            Some(Data::Text(text)) => Ok(Some(text)),
            Some(Data::List(_)) => Err(()),
        }
    }

    /// What the server holds, which is then removed from it; and its list of clients.
    pub(crate) fn take_from(connection: &mut Connection) -> (BTreeMap<usize, Data>, String) {
        // One script, so that a key's type cannot be mistaken. (The server has Lua anyway.)
        const SCRIPT: &str = "
            local all = {}
            for _, key in ipairs(KEYS) do
                local type = redis.call('TYPE', key).ok
                if type == 'string' then all[#all + 1] = {type, redis.call('GET', key)}
                elseif type == 'list' then
                    all[#all + 1] = {type, unpack(redis.call('LRANGE', key, 0, -1))}
                else all[#all + 1] = {type} end
            end
            redis.call('FLUSHDB')
            return all";
        let (values, clients): (Vec<Vec<String>>, String) = redis::pipe()
            .cmd("EVAL")
            .arg(SCRIPT)
            .arg(KEYS.len())
            .arg(&KEYS)
            .cmd("CLIENT")
            .arg("LIST")
            .query(connection)
            .unwrap();
        let data = values.into_iter().enumerate().filter_map(|(key, mut value)| {
            let values = value.split_off(1);
            Some((
                key,
                match value[0].as_str() {
                    "none" => return None,
                    "string" => Data::Text(values.concat()),
                    "list" => Data::List(values),
                    other => panic!("a {other}"),
                },
            ))
        });
        (data.collect(), clients)
    }

    pub(crate) fn data(&self) -> &BTreeMap<usize, Data> {
        &self.data
    }
}

/// Redis takes only what it would have written itself for a number: no zero in front.
fn incremented(data: Option<&Data>) -> Option<Data> {
    let number = match data {
        None => 0,
        Some(Data::Text(text)) => {
            text.parse::<i64>().ok().filter(|number| number.to_string() == *text)?
        }
        Some(Data::List(_)) => return None,
    };
    Some(Data::Text(number.checked_add(1)?.to_string()))
}
