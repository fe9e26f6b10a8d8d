//! Leftovers on a connection: whatever one caller leaves, the next one gets its own reply, database, user,
//! protocol and timeouts, and no nil EXEC.
//!
//! The same rows run against plain `r2d2` + `redis`, where each must show the defect, which proves that the
//! checks find it. How a transactional scope ends is in `scopes`.
//!
//! Guarantee: clean-connections

use crate::fixture::SOON;
use crate::side::BuildSide as _;
use std::net::{Ipv4Addr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread;
use std::time::Duration;

use crate::side::SessionManager;
use redis::{Connection, RedisError, RedisResult, Value, cmd};
use rediscope::Error;

use rediscope_testing::server::{PORT_TRIES, Server, redis_server};
use rediscope_testing::{eventually, unique};

/// Timeout of a call, long enough for a busy machine.
const CALL: Duration = Duration::from_millis(1500);
/// What the row of that name leaves behind, and how long a command takes that notices.
const SHORT: Duration = Duration::from_millis(100);
const SLOW: f64 = 0.5;
/// Watched by the row of that name, changed before every EXEC.
const WATCHED: &str = "watched";

/// What the next caller notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Defect {
    /// Another caller's reply, or none.
    Reply,
    Database,
    User,
    Protocol,
    ReadOnly,
    /// A command that takes its time is given up early.
    Timeout,
    /// EXEC is nil though no key is watched.
    NilExec,
}

struct Row {
    name: &'static str,
    leave: fn(&mut Connection) -> RedisResult<()>,
    defect: Defect,
    /// Whether r2d2's check, a PING before each use, does not notice either.
    pings: bool,
    /// READONLY exists on a server of a cluster only, which has one database.
    cluster: bool,
}

const fn row(
    name: &'static str,
    leave: fn(&mut Connection) -> RedisResult<()>,
    defect: Defect,
    pings: bool,
) -> Row {
    Row { name, leave, defect, pings, cluster: false }
}

const ROWS: &[Row] = &[
    row("MULTI", |c| cmd("MULTI").exec(c), Defect::Reply, true),
    row("WATCH", |c| cmd("WATCH").arg(WATCHED).exec(c), Defect::NilExec, true),
    row("SELECT", |c| cmd("SELECT").arg(5).exec(c), Defect::Database, true),
    row("AUTH", |c| cmd("AUTH").arg("other").arg("secret").exec(c), Defect::User, true),
    row("HELLO 3", |c| cmd("HELLO").arg(3).exec(c), Defect::Protocol, true),
    row("CLIENT REPLY OFF", |c| client_reply(c, "OFF"), Defect::Reply, false),
    row("CLIENT REPLY SKIP", |c| client_reply(c, "SKIP"), Defect::Reply, false),
    Row { cluster: true, ..row("READONLY", |c| cmd("READONLY").exec(c), Defect::ReadOnly, true) },
    row(
        "half a command",
        |c| c.send_packed_command(b"*2\r\n$4\r\nECHO\r\n$900\r\nx"),
        Defect::Reply,
        false,
    ),
    row(
        "an unread reply",
        |c| c.send_packed_command(b"*2\r\n$4\r\nECHO\r\n$5\r\nstale\r\n"),
        Defect::Reply,
        true,
    ),
    row("a short read timeout", |c| c.set_read_timeout(Some(SHORT)), Defect::Timeout, true),
];

/// It has no reply, so none must be awaited.
fn client_reply(connection: &mut Connection, mode: &str) -> RedisResult<()> {
    connection.send_packed_command(&cmd("CLIENT").arg("REPLY").arg(mode).get_packed_command())
}

/// A server, and how its users are meant to be connected.
struct Home {
    server: Server,
    url: String,
    db: &'static str,
}

impl Home {
    fn of(row: &Row) -> Self {
        let (server, db) = if row.cluster { (cluster(), "0") } else { (Server::start(), "3") };
        for user in ["app", "other"] {
            server.acl(&["SETUSER", user, "on", ">secret", "~*", "&*", "+@all"]);
        }
        let url = format!("{}{db}", server.url_as("app", "secret"));
        Self { server, url, db }
    }

    /// What the next caller finds wrong with the connection.
    fn defects(&self, connection: &mut Connection) -> Vec<Defect> {
        let mut defects = Vec::new();
        let mut note = |wrong: bool, defect| defects.extend(wrong.then_some(defect));
        let word = unique("word");
        let echo: RedisResult<String> = cmd("ECHO").arg(&word).query(connection);
        note(echo.as_ref() != Ok(&word), Defect::Reply);
        // Without replies of its own it cannot find out anything else.
        if echo.as_ref() == Ok(&word) {
            let info: String = cmd("CLIENT").arg("INFO").query(connection).unwrap();
            let is = |field: &str| info.split_whitespace().any(|fact| fact == field);
            note(!is(&format!("db={}", self.db)), Defect::Database);
            note(!is("user=app"), Defect::User);
            note(!is("resp=2"), Defect::Protocol);
            let flags = info.split_whitespace().find_map(|fact| fact.strip_prefix("flags="));
            note(flags.unwrap().contains('r'), Defect::ReadOnly);
            note(self.exec(connection) == Ok(Value::Nil), Defect::NilExec);
            let slow: RedisResult<Option<Value>> =
                cmd("BLPOP").arg("none").arg(SLOW).query(connection);
            note(slow != Ok(None), Defect::Timeout);
        }
        defects
    }

    /// A transaction that watches nothing, after a change of what others may have watched.
    fn exec(&self, connection: &mut Connection) -> RedisResult<Value> {
        let mut outside = redis::Client::open(self.url.as_str())?.get_connection()?;
        cmd("SET").arg(WATCHED).arg("changed").exec(&mut outside)?;
        cmd("MULTI").exec(connection)?;
        cmd("SET").arg("key").arg("value").exec(connection)?;
        cmd("EXEC").query(connection)
    }
}

/// A cluster of one.
fn cluster() -> Server {
    let start = |_| {
        // By default the bus takes a port 10,000 higher, which need not exist.
        let bus = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let extra = ["--cluster-enabled", "yes", "--cluster-port", &bus.to_string()];
        Server::attempt(redis_server(), &extra)
    };
    let server = (0..PORT_TRIES).find_map(start).expect("free ports for a node");
    server.ask::<()>(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    eventually(SOON, "the cluster is up", || {
        server.ask::<String>(&["CLUSTER", "INFO"]).contains("cluster_state:ok")
    });
    server
}

/// Plays the table, every row on a server of its own.
fn each_row(play: fn(&Row, &Home)) {
    thread::scope(|scope| {
        for row in ROWS {
            thread::Builder::new()
                .name(row.name.to_owned())
                .spawn_scoped(scope, move || play(row, &Home::of(row)))
                .unwrap();
        }
    });
}

fn sessions(home: &Home) -> SessionManager {
    let builder = SessionManager::builder(home.url.as_str()).max_size(1).response_timeout(CALL);
    // However trusted: what matters is what is left, not what is probed.
    builder.trust_window(SOON).build_side().unwrap()
}

#[test]
fn leftovers_of_a_raw_connection_are_gone_before_the_next_checkout() {
    each_row(|row, home| {
        let sessions = sessions(home);
        let mut db = sessions.pooled();
        for ended_by_panic in [false, true] {
            let used = catch_unwind(AssertUnwindSafe(|| {
                db.with_raw(|connection| {
                    (row.leave)(connection).unwrap();
                    if ended_by_panic {
                        resume_unwind(Box::new("one of the ways to end"));
                    }
                })
            }));
            assert_eq!(used.is_err(), ended_by_panic, "{}", row.name);
            // First a caller with a single command, then one that looks closer.
            let word = unique("word");
            let echo: String = cmd("ECHO").arg(&word).query(&mut db).unwrap();
            assert_eq!(echo, word, "{}", row.name);
            let info: String = cmd("CLIENT").arg("INFO").query(&mut db).unwrap();
            let expected = [format!("db={}", home.db), "user=app".to_owned(), "resp=2".to_owned()];
            let facts: Vec<&str> = info.split_whitespace().collect();
            assert!(expected.iter().all(|fact| facts.contains(&fact.as_str())), "{info}");
            let slow: Option<Value> = cmd("BLPOP").arg("none").arg(SLOW).query(&mut db).unwrap();
            assert_eq!(slow, None, "{}", row.name);
            db.with_raw(|connection| (row.leave)(connection).unwrap()).unwrap();
            let defects = db.with_raw(|connection| home.defects(connection)).unwrap();
            assert_eq!(defects, [], "{}", row.name);
            let status = sessions.status().pooled;
            assert_eq!((status.in_use, status.waiting), (0, 0), "{status}");
        }
    });
}

#[test]
fn a_connection_that_was_handed_out_raw_is_closed_at_once() {
    let home = Home::of(&ROWS[0]);
    let sessions = sessions(&home);
    let id = |sessions: &SessionManager| -> Result<i64, Error> {
        sessions.pooled().with_raw(|connection| cmd("CLIENT").arg("ID").query(connection).unwrap())
    };
    let first = id(&sessions).unwrap();
    assert_ne!(id(&sessions).unwrap(), first);
    eventually(SOON, "no connection is left", || home.server.clients() == 0);
}

/// The control: connections of an ordinary pool.
#[derive(Debug)]
struct Plain(redis::Client);

impl r2d2::ManageConnection for Plain {
    type Connection = Connection;
    type Error = RedisError;

    fn connect(&self) -> RedisResult<Connection> {
        let connection = self.0.get_connection_with_timeout(CALL)?;
        connection.set_read_timeout(Some(CALL))?;
        connection.set_write_timeout(Some(CALL))?;
        Ok(connection)
    }

    fn is_valid(&self, connection: &mut Connection) -> RedisResult<()> {
        cmd("PING").query::<String>(connection).map(drop)
    }

    fn has_broken(&self, connection: &mut Connection) -> bool {
        !redis::ConnectionLike::is_open(connection)
    }
}

/// What the next caller finds when a plain pool is used like the crate's.
fn plain_defects(row: &Row, home: &Home, check: bool) -> Vec<Defect> {
    let client = redis::Client::open(home.url.as_str()).unwrap();
    let builder = r2d2::Pool::builder().max_size(1).test_on_check_out(check);
    let pool = builder.error_handler(Box::new(r2d2::NopErrorHandler)).build(Plain(client)).unwrap();
    (row.leave)(&mut pool.get().unwrap()).unwrap();
    home.defects(&mut pool.get().unwrap())
}

#[test]
fn control_a_plain_pool_hands_on_every_left_over_of_the_table() {
    each_row(|row, home| {
        let defects = plain_defects(row, home, false);
        assert!(defects.contains(&row.defect), "{}: {defects:?}", row.name);
    });
}

#[test]
fn control_a_ping_before_each_use_misses_most_of_them() {
    each_row(|row, home| {
        let defects = plain_defects(row, home, true);
        assert_eq!(!defects.is_empty(), row.pings, "{}: {defects:?}", row.name);
    });
}
