//! Redis as a map of a few keys: what a list of commands replies, and what it leaves.

use std::collections::{BTreeMap, VecDeque};

use fastrand::Rng;
use redis::Value;
use rediscope::prelude::*;

/// Every command may meet every key, so that some meet a wrong type.
pub(crate) const KEYS: usize = 4;
/// Fields of a hash.
const FIELDS: [&str; 2] = ["a", "b"];

#[derive(Clone, Debug)]
pub(crate) enum Call {
    Set(usize, String),
    Get(usize),
    Append(usize, String),
    Length(usize),
    Increment(usize, i64),
    Push(usize, String),
    Pop(usize),
    Items(usize),
    SetField(usize, usize, String),
    GetField(usize, usize),
    IncrementField(usize, usize, i64),
    Delete(usize),
    Exists(usize),
    /// A command that the user may not call: refused when it is queued.
    Denied(usize),
}

impl Call {
    /// `value`: one that no other command of any worker has.
    pub(crate) fn any(rng: &mut Rng, value: impl FnOnce() -> String) -> Self {
        let (field, by) = (rng.usize(..FIELDS.len()), rng.i64(1..1_000));
        // Mostly the key of its type.
        let stray = rng.u8(..16) == 0;
        let any = rng.usize(..KEYS);
        let of = |home| if stray { any } else { home };
        match rng.u8(..14) {
            0 | 1 => Self::Set(of(0), value()),
            2 => Self::Get(of(0)),
            3 => Self::Append(of(0), value()),
            4 => Self::Length(of(0)),
            5 => Self::Increment(of(1), by),
            6 => Self::Push(of(2), value()),
            7 => Self::Pop(of(2)),
            8 => Self::Items(of(2)),
            9 => Self::SetField(of(3), 0, value()),
            10 => Self::GetField(of(3), field),
            11 => Self::IncrementField(of(3), if stray { 0 } else { 1 }, by),
            12 => Self::Delete(any),
            _ => Self::Exists(any),
        }
    }

    pub(crate) fn queue(&self, tx: &mut rediscope::Block, keys: &[String; KEYS]) -> Queued<Value> {
        match self {
            Self::Set(key, value) => tx.set(&keys[*key], value).cast(),
            Self::Get(key) => tx.get(&keys[*key]),
            Self::Append(key, value) => tx.append(&keys[*key], value).cast(),
            Self::Length(key) => tx.strlen(&keys[*key]).cast(),
            Self::Increment(key, by) => tx.incr(&keys[*key], *by).cast(),
            Self::Push(key, value) => tx.rpush(&keys[*key], value).cast(),
            Self::Pop(key) => tx.lpop(&keys[*key], None),
            Self::Items(key) => tx.llen(&keys[*key]).cast(),
            Self::SetField(key, field, value) => tx.hset(&keys[*key], FIELDS[*field], value).cast(),
            Self::GetField(key, field) => tx.hget(&keys[*key], FIELDS[*field]),
            Self::IncrementField(key, field, by) => {
                tx.hincr(&keys[*key], FIELDS[*field], *by).cast()
            }
            Self::Delete(key) => tx.del(&keys[*key]).cast(),
            Self::Exists(key) => tx.exists(&keys[*key]).cast(),
            Self::Denied(key) => tx.persist(&keys[*key]).cast(),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Data {
    Text(String),
    List(VecDeque<String>),
    Hash(BTreeMap<&'static str, String>),
}

/// A reply, or the code of an error.
pub(crate) type Reply = Result<Value, String>;

/// What one worker's keys hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Model {
    data: [Option<Data>; KEYS],
}

fn text(text: &str) -> Value {
    Value::BulkString(text.as_bytes().to_vec())
}

fn number(number: usize) -> Value {
    Value::Int(number.try_into().expect("a small number"))
}

/// A number that was written by the server.
fn added(text: &str, by: i64) -> Result<i64, String> {
    Ok(text.parse::<i64>().map_err(|_| "ERR")? + by)
}

impl Model {
    /// Runs the commands of a block that is applied.
    pub(crate) fn apply(&mut self, block: &[Call]) -> Vec<Reply> {
        block.iter().map(|call| self.call(call)).collect()
    }

    pub(crate) fn get(&self, key: usize) -> Reply {
        match &self.data[key] {
            None => Ok(Value::Nil),
            Some(Data::Text(found)) => Ok(text(found)),
            Some(_) => Err("WRONGTYPE".to_owned()),
        }
    }

    fn text(&mut self, key: usize) -> Result<&mut String, String> {
        match self.data[key].get_or_insert_with(|| Data::Text(String::new())) {
            Data::Text(text) => Ok(text),
            _ => Err("WRONGTYPE".to_owned()),
        }
    }

    fn hash(&mut self, key: usize) -> Result<&mut BTreeMap<&'static str, String>, String> {
        match self.data[key].get_or_insert_with(|| Data::Hash(BTreeMap::new())) {
            Data::Hash(hash) => Ok(hash),
            _ => Err("WRONGTYPE".to_owned()),
        }
    }

    fn call(&mut self, call: &Call) -> Reply {
        let wrong = || "WRONGTYPE".to_owned();
        match *call {
            Call::Set(key, ref value) => {
                self.data[key] = Some(Data::Text(value.clone()));
                Ok(Value::Okay)
            }
            Call::Get(key) => self.get(key),
            Call::Append(key, ref value) => {
                let text = self.text(key)?;
                text.push_str(value);
                Ok(number(text.len()))
            }
            Call::Length(key) => match &self.data[key] {
                None => Ok(Value::Int(0)),
                Some(Data::Text(text)) => Ok(number(text.len())),
                Some(_) => Err(wrong()),
            },
            Call::Increment(key, by) => {
                let before = match &self.data[key] {
                    None => "0",
                    Some(Data::Text(text)) => text,
                    Some(_) => return Err(wrong()),
                };
                let sum = added(before, by)?;
                self.data[key] = Some(Data::Text(sum.to_string()));
                Ok(Value::Int(sum))
            }
            Call::Push(key, ref value) => {
                match self.data[key].get_or_insert_with(|| Data::List(VecDeque::new())) {
                    Data::List(list) => {
                        list.push_back(value.clone());
                        Ok(number(list.len()))
                    }
                    _ => Err(wrong()),
                }
            }
            Call::Pop(key) => match &mut self.data[key] {
                None => Ok(Value::Nil),
                Some(Data::List(list)) => {
                    let first = list.pop_front().expect("an empty list is none");
                    if list.is_empty() {
                        self.data[key] = None;
                    }
                    Ok(text(&first))
                }
                Some(_) => Err(wrong()),
            },
            Call::Items(key) => match &self.data[key] {
                None => Ok(Value::Int(0)),
                Some(Data::List(list)) => Ok(number(list.len())),
                Some(_) => Err(wrong()),
            },
            Call::SetField(key, field, ref value) => {
                let before = self.hash(key)?.insert(FIELDS[field], value.clone());
                Ok(number(usize::from(before.is_none())))
            }
            Call::GetField(key, field) => match &self.data[key] {
                None => Ok(Value::Nil),
                Some(Data::Hash(hash)) => {
                    Ok(hash.get(FIELDS[field]).map_or(Value::Nil, |value| text(value)))
                }
                Some(_) => Err(wrong()),
            },
            Call::IncrementField(key, field, by) => {
                let before = match &self.data[key] {
                    None => None,
                    Some(Data::Hash(hash)) => hash.get(FIELDS[field]),
                    Some(_) => return Err(wrong()),
                };
                let sum = added(before.map_or("0", String::as_str), by)?;
                self.hash(key)?.insert(FIELDS[field], sum.to_string());
                Ok(Value::Int(sum))
            }
            Call::Delete(key) => Ok(number(usize::from(self.data[key].take().is_some()))),
            Call::Exists(key) => Ok(number(usize::from(self.data[key].is_some()))),
            Call::Denied(_) => panic!("a block with a refused command is not applied"),
        }
    }

    /// Whether the server holds this under `keys`.
    pub(crate) fn is_on(&self, keys: &[String; KEYS], db: &mut redis::Connection) -> bool {
        let mut types = redis::pipe();
        keys.iter().for_each(|key| _ = types.cmd("TYPE").arg(key));
        let types: Vec<String> = types.query(db).unwrap();
        let mut reads = redis::pipe();
        for (key, kind) in keys.iter().zip(&types) {
            match kind.as_str() {
                "list" => reads.cmd("LRANGE").arg(key).arg(0).arg(-1),
                "hash" => reads.cmd("HMGET").arg(key).arg(&FIELDS),
                _ => reads.cmd("GET").arg(key),
            };
        }
        let found: Vec<Value> = reads.query(db).unwrap();
        found == self.data.iter().map(as_read).collect::<Vec<_>>()
    }
}

/// The reply to the read of a key that holds this.
fn as_read(data: &Option<Data>) -> Value {
    match data {
        None => Value::Nil,
        Some(Data::Text(found)) => text(found),
        Some(Data::List(list)) => Value::Array(list.iter().map(|item| text(item)).collect()),
        Some(Data::Hash(hash)) => {
            let of = |field: &&str| hash.get(field).map_or(Value::Nil, |value| text(value));
            Value::Array(FIELDS.iter().map(of).collect())
        }
    }
}
