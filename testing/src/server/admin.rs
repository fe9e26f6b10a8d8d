//! Queries and commands for a test server, over a connection that does not count itself.
//!
//! It uses no command whose statistics a test is likely to read.

use std::collections::{BTreeMap, HashMap};

use redis::{FromRedisValue, Value, cmd};

use super::Server;

impl Server {
    /// CLIENT LIST, one map a client, without the asking connection. Connections that
    /// [`connection`](Self::connection) gave are in it.
    pub fn client_list(&self) -> Vec<HashMap<String, String>> {
        let me: i64 = self.ask(&["CLIENT", "ID"]);
        let me = me.to_string();
        let list: String = self.ask(&["CLIENT", "LIST"]);
        list.lines().map(client).filter(|client| client.get("id") != Some(&me)).collect()
    }

    /// Clients other than the asking one that are neither replicas, masters, monitors nor
    /// subscribers.
    pub fn clients(&self) -> usize {
        let special = |flags: &String| flags.contains(['S', 'M', 'O', 'P']);
        let normal = |client: &HashMap<_, _>| !client.get("flags").is_some_and(special);
        self.client_list().into_iter().filter(normal).count()
    }

    /// Clients in a RESP2 subscription.
    pub fn subscribers(&self) -> usize {
        let flagged =
            |client: &HashMap<_, String>| client.get("flags").is_some_and(|f| f.contains('P'));
        self.client_list().into_iter().filter(flagged).count()
    }

    /// False when there is no such client.
    pub fn kill_client(&self, id: impl ToString) -> bool {
        let killed: i64 = self.ask(&["CLIENT", "KILL", "ID", &id.to_string()]);
        killed > 0
    }

    /// Kills all clients but the asking one, replicas aside; returns how many.
    pub fn kill_all_clients_except_me(&self) -> usize {
        let kill = |kind| -> usize { self.ask(&["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"]) };
        kill("normal") + kill("pubsub")
    }

    /// Calls per command since the start or [`reset_stats`](Self::reset_stats), in lower case, a
    /// subcommand as `client|list`. Commands queued in a transaction count when EXEC runs them.
    pub fn commandstats(&self) -> BTreeMap<String, u64> {
        let stats: String = self.ask(&["INFO", "commandstats"]);
        let calls = |line: &str| {
            let (command, facts) = line.strip_prefix("cmdstat_")?.split_once(':')?;
            let calls = facts.split(',').find_map(|fact| fact.strip_prefix("calls="))?;
            Some((command.to_ascii_lowercase(), calls.parse().ok()?))
        };
        stats.lines().filter_map(calls).collect()
    }

    /// Calls of one command, as [`commandstats`](Self::commandstats) counts them.
    pub fn calls(&self, command: &str) -> u64 {
        self.commandstats().get(&command.to_ascii_lowercase()).copied().unwrap_or(0)
    }

    /// Sets all statistics to zero.
    pub fn reset_stats(&self) {
        self.ask::<()>(&["CONFIG", "RESETSTAT"]);
    }

    /// Sets one configuration parameter.
    #[track_caller]
    pub fn config_set(&self, key: &str, value: &str) {
        self.ask::<()>(&["CONFIG", "SET", key, value]);
    }

    /// Such as `&["SETUSER", "app", "on", ">secret", "~*", "+@all", "-multi"]`.
    #[track_caller]
    pub fn acl(&self, arguments: &[&str]) -> Value {
        self.ask(&[&["ACL"], arguments].concat())
    }

    /// No client gets a reply for this time, including this connection. Connecting works.
    pub fn pause_clients(&self, millis: u64) {
        self.ask::<()>(&["CLIENT", "PAUSE", &millis.to_string(), "ALL"]);
    }

    /// Only writes wait: reads, PING and this module's queries return.
    pub fn pause_writes(&self, millis: u64) {
        self.ask::<()>(&["CLIENT", "PAUSE", &millis.to_string(), "WRITE"]);
    }

    /// Ends [`pause_writes`](Self::pause_writes); during `pause_clients` it waits itself.
    pub fn unpause(&self) {
        self.ask::<()>(&["CLIENT", "UNPAUSE"]);
    }

    /// Whether it has this command, or subcommand, such as `CONFIG|GET` from Redis 7.0 on.
    pub fn knows(&self, command: &str) -> bool {
        self.ask::<Vec<Value>>(&["COMMAND", "INFO", command]) != [Value::Nil]
    }

    /// One field of INFO.
    pub fn info(&self, field: &str) -> Option<String> {
        let all: String = self.ask(&["INFO", "everything"]);
        let value = |line: &str| line.strip_prefix(field)?.strip_prefix(':').map(str::to_owned);
        all.lines().find_map(value)
    }

    /// Resident memory of the server process, in bytes.
    pub fn rss(&self) -> u64 {
        self.number("used_memory_rss")
    }

    /// Memory the server's data and buffers take, in bytes.
    pub fn used_memory(&self) -> u64 {
        self.number("used_memory")
    }

    /// Connections the server ever accepted, the asking one included.
    pub fn connections_received(&self) -> u64 {
        self.number("total_connections_received")
    }

    fn number(&self, field: &str) -> u64 {
        let value = self.info(field).and_then(|value| value.parse().ok());
        value.unwrap_or_else(|| panic!("INFO has no number {field}"))
    }

    /// Runs one command on the asking connection; once more when that one had been closed.
    #[track_caller]
    pub fn ask<T: FromRedisValue>(&self, command: &[&str]) -> T {
        let mut admin = self.admin.lock().unwrap();
        let reused = admin.is_some();
        let answer = self.ask_on(&mut admin, command);
        let lost = answer.as_ref().is_err_and(|error| error.is_io_error());
        if lost {
            *admin = None;
        }
        let answer = if lost && reused { self.ask_on(&mut admin, command) } else { answer };
        answer.unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    fn ask_on<T: FromRedisValue>(
        &self,
        admin: &mut Option<redis::Connection>,
        command: &[&str],
    ) -> redis::RedisResult<T> {
        let connection = match admin {
            Some(connection) => connection,
            None => admin.insert(self.try_connect(self.info_as(None))?),
        };
        cmd(command[0]).arg(&command[1..]).query(connection)
    }
}

/// One line of CLIENT LIST. Outside MULTI its `multi` is -1, whatever the server reports: Valkey
/// reports 0 once a client has watched or been in MULTI.
fn client(line: &str) -> HashMap<String, String> {
    let field =
        |word: &str| word.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
    let mut client: HashMap<_, _> = line.split(' ').filter_map(field).collect();
    let in_multi = client.get("flags").is_some_and(|flags| flags.contains('x'));
    if let (false, Some(queued)) = (in_multi, client.get_mut("multi")) {
        "-1".clone_into(queued);
    }
    client
}
