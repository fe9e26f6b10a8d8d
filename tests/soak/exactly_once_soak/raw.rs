//! A client with its own protocol over a plain connection, to compare another design with the library.

use std::time::Duration;

use redis::{Connection, RedisError, Value};

use super::controls::Rule;
use super::operations::{count_key, log_key, set, tag};
use rediscope_testing::packed;
use rediscope_testing::server::Server;

const RESPONSE: Duration = Duration::from_millis(60);
const CONNECT: Duration = Duration::from_millis(500);
const HOUR: &str = "3600000";

/// What would be returned to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Belief {
    Committed,
    NotCommitted,
    Unknown,
}

/// What is needed to ask what became of a transaction.
#[derive(Debug)]
pub(crate) enum Token {
    Marker(String),
    Register(String, u64),
}

pub(crate) struct Client {
    rule: Rule,
    url: String,
    worker: u64,
    connection: Option<Connection>,
    /// Connections so far: each has a register of its own.
    opened: u64,
    number: u64,
    armed: bool,
}

impl Client {
    pub(crate) fn new(rule: Rule, url: String, worker: u64) -> Self {
        Self { rule, url, worker, connection: None, opened: 0, number: 0, armed: false }
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    /// Commits; if the reply was lost, returns what its resolution needs.
    pub(crate) fn commit(&mut self, id: u64) -> Result<Belief, Token> {
        let Ok(()) = self.connect() else { return Ok(Belief::NotCommitted) };
        if self.rule == Rule::WatchedRegister && !self.armed && self.arm().is_err() {
            self.connection = None;
            return Ok(Belief::NotCommitted);
        }
        let register = self.register();
        let mut words: Vec<Vec<u8>> = Vec::new();
        if self.rule == Rule::Unacknowledged {
            self.number += 1;
            words.push(packed(&["SET", &register, &self.number.to_string(), "PX", HOUR]));
            words.push(packed(&["WATCH", &register]));
        }
        words.push(packed(&["MULTI"]));
        words.push(packed(&["INCRBY", &count_key(id), "1"]));
        words.push(packed(&["RPUSH", &log_key(&tag(self.worker, set(id))), &id.to_string()]));
        let marker = format!("marker:{id}");
        let token = if self.rule == Rule::Marker {
            words.push(packed(&["SET", &marker, "1"]));
            Token::Marker(marker)
        } else {
            self.number += 1;
            words.push(packed(&["SET", &register, &self.number.to_string(), "PX", HOUR]));
            Token::Register(register.clone(), self.number)
        };
        let exec = words.len();
        words.push(packed(&["EXEC"]));
        if self.rule == Rule::WatchedRegister {
            words.push(packed(&["WATCH", &register]));
        }
        match self.exchange(&words).map(|replies| replies[exec].clone()) {
            Ok(Value::Array(_)) => Ok(Belief::Committed),
            Ok(Value::Nil) => {
                self.armed = false;
                Ok(Belief::NotCommitted)
            }
            // A reply that cannot stand there, or none.
            _ => {
                self.connection = None;
                Err(token)
            }
        }
    }

    fn connect(&mut self) -> Result<(), RedisError> {
        if self.connection.is_none() {
            let client = redis::Client::open(self.url.as_str())?;
            let connection = client.get_connection_with_timeout(CONNECT)?;
            connection.set_read_timeout(Some(RESPONSE))?;
            connection.set_write_timeout(Some(RESPONSE))?;
            (self.connection, self.armed) = (Some(connection), false);
            self.opened += 1;
        }
        Ok(())
    }

    fn register(&self) -> String {
        format!("reg:{}:{}", self.worker, self.opened)
    }

    fn arm(&mut self) -> Result<(), RedisError> {
        self.number += 1;
        let (register, number) = (self.register(), self.number.to_string());
        let set = packed(&["SET", &register, &number, "PX", HOUR]);
        self.exchange(&[set, packed(&["WATCH", &register])])?;
        self.armed = true;
        Ok(())
    }

    /// One write, and as many replies as there are commands.
    fn exchange(&mut self, words: &[Vec<u8>]) -> Result<Vec<Value>, RedisError> {
        let connection = self.connection.as_mut().expect("connected");
        connection.send_packed_command(&words.concat())?;
        words.iter().map(|_| connection.recv_response()).collect()
    }
}

/// Asks the server, past the proxy.
pub(crate) fn resolve(server: &Server, token: &Token) -> Belief {
    match token {
        Token::Marker(marker) => match server.ask::<bool>(&["EXISTS", marker]) {
            true => Belief::Committed,
            false => Belief::NotCommitted,
        },
        Token::Register(register, number) => {
            let touched: bool = server.ask(&["PEXPIRE", register, HOUR]);
            let found: Option<u64> = server.ask(&["GET", register]);
            match found {
                Some(found) if found == *number => Belief::Committed,
                Some(found) if touched && found < *number => Belief::NotCommitted,
                _ => Belief::Unknown,
            }
        }
    }
}
