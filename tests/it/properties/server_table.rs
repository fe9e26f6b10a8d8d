//! The replies of a server to each command of the transaction protocol in each state of a connection. The unit
//! tests walk the crate's own view of a connection through the same table, which is in `tests/unit`.
//!
//! `REDISCOPE_RECORD=1 cargo test --test it server_table` writes the table again.
//!
//! Guarantee: pools

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::io::Write;
use std::net::TcpStream;

use redis::{Connection, Parser, Value};
use rediscope_testing::packed;
use rediscope_testing::server::Server;

const TABLE: &str = "tests/unit/connection_state.tsv";
const COMMANDS: [&str; 8] =
    ["WATCH k", "WATCH", "UNWATCH", "MULTI", "INCR k", "NOSUCHCOMMAND", "EXEC", "DISCARD"];
/// Another client writes the watched key.
const TOUCH: &str = "touch";
/// The user has no right to the command that follows.
const DENIED: &str = "denied ";

/// What was done on a connection, in order.
type Path = Vec<String>;

/// What a path leads to.
struct Played {
    /// Kept open, so that the server still lists it.
    _stream: TcpStream,
    last_reply: Option<Value>,
    in_multi: bool,
    touched: bool,
}

struct Player {
    server: Server,
    other: Connection,
}

impl Player {
    fn new() -> Self {
        let server = Server::start();
        server.acl(&["SETUSER", "app", "on", ">secret", "~*", "&*", "+@all"]);
        let other = server.connection();
        Self { server, other }
    }

    /// Plays a path on a new connection.
    fn play(&mut self, path: &[String]) -> Played {
        self.order(&["DEL", "k"]);
        let mut stream = TcpStream::connect(self.server.address()).unwrap();
        stream.set_nodelay(true).unwrap();
        assert_eq!(ask(&mut stream, &["AUTH", "app", "secret"]), Value::Okay);
        let id: i64 = redis::from_redis_value(ask(&mut stream, &["CLIENT", "ID"])).unwrap();
        let mut last_reply = None;
        for step in path {
            let command = step.strip_prefix(DENIED).unwrap_or(step);
            let words: Vec<_> = command.split(' ').collect();
            let right = words[0].to_lowercase();
            let is_denied = command != step;
            if step == TOUCH {
                self.order(&["INCR", "k"]);
                continue;
            }
            if is_denied {
                self.order(&["ACL", "SETUSER", "app", &format!("-{right}")]);
            }
            last_reply = Some(ask(&mut stream, &words));
            if is_denied {
                self.order(&["ACL", "SETUSER", "app", &format!("+{right}")]);
            }
        }
        let mut list = redis::cmd("CLIENT");
        list.arg("LIST").arg("ID").arg(id);
        let line: String = list.query(&mut self.other).unwrap();
        let flags = line.split(' ').find_map(|word| word.strip_prefix("flags=")).unwrap();
        let (in_multi, touched) = (flags.contains('x'), flags.contains('d'));
        Played { _stream: stream, last_reply, in_multi, touched }
    }

    /// The last reply of a path, and the state it leads to: what later replies depend on. Some of that
    /// shows only in what comes next, so the path is played again for it.
    fn outcome(&mut self, path: &[String]) -> (String, String) {
        let then = |next: &str| path.iter().cloned().chain([next.to_owned()]).collect::<Path>();
        let played = self.play(path);
        let is_watching = self.play(&then(TOUCH)).touched;
        let exec = self.play(&then("EXEC")).last_reply;
        let aborts = played.in_multi && matches!(exec, Some(Value::ServerError(_)));
        let facts = [
            (played.in_multi, "multi"),
            (is_watching, "watching"),
            (played.touched, "touched"),
            (aborts, "aborts"),
        ];
        let facts: Vec<_> = facts.iter().filter(|fact| fact.0).map(|fact| fact.1).collect();
        let state = if facts.is_empty() { "idle".to_owned() } else { facts.join("+") };
        (played.last_reply.as_ref().map_or_else(|| "-".to_owned(), reply), state)
    }

    fn order(&mut self, words: &[&str]) {
        redis::cmd(words[0]).arg(&words[1..]).exec(&mut self.other).unwrap();
    }
}

fn ask(stream: &mut TcpStream, words: &[&str]) -> Value {
    stream.write_all(&packed(words)).unwrap();
    Parser::new().parse_value(&*stream).unwrap()
}

/// The kind of a reply, as RESP begins it, and the text of an error.
fn reply(value: &Value) -> String {
    match value {
        Value::Okay => "+OK".to_owned(),
        Value::SimpleString(text) => format!("+{text}"),
        Value::Int(_) => ":1".to_owned(),
        Value::Nil => "*-1".to_owned(),
        Value::Array(_) => "*0".to_owned(),
        Value::ServerError(error) => {
            format!("-{} {}", error.code(), error.details().unwrap_or_default())
        }
        other => panic!("no command here has the reply {other:?}"),
    }
}

/// Every step from every state that any steps lead to, a line each: state, step, reply, next state.
fn record() -> String {
    let mut player = Player::new();
    let mut lines = Vec::new();
    let mut seen = BTreeSet::from(["idle".to_owned()]);
    let mut queue = VecDeque::from([("idle".to_owned(), Path::new())]);
    let steps: Vec<_> = COMMANDS
        .iter()
        .flat_map(|command| [(*command).to_owned(), format!("{DENIED}{command}")])
        .filter(|step| !step.ends_with("NOSUCHCOMMAND") || step == "NOSUCHCOMMAND")
        .chain([TOUCH.to_owned()])
        .collect();
    while let Some((state, path)) = queue.pop_front() {
        for step in &steps {
            let longer: Path = path.iter().chain([step]).cloned().collect();
            let (reply, next) = player.outcome(&longer);
            let reply = if step == TOUCH { "-".to_owned() } else { reply };
            lines.push(format!("{state}\t{step}\t{reply}\t{next}\n"));
            if seen.insert(next.clone()) {
                queue.push_back((next, longer));
            }
        }
    }
    lines.concat()
}

#[test]
fn the_table_of_replies_equals_the_replies_of_this_server() {
    let recorded = record();
    if std::env::var_os("REDISCOPE_RECORD").is_some() {
        fs::write(TABLE, &recorded).unwrap();
    }
    let table = fs::read_to_string(TABLE).unwrap();
    // Servers word their errors differently. An error's code has its meaning; the tests of `acl`
    // compare texts.
    let without_texts = |table: &str| -> BTreeSet<Vec<String>> {
        let word = |field: &str| match field.strip_prefix('-') {
            Some(error) => format!("-{}", error.split(' ').next().unwrap_or_default()),
            None => field.to_owned(),
        };
        table.lines().map(|line| line.split('\t').map(word).collect()).collect()
    };
    let (recorded, table) = (without_texts(&recorded), without_texts(&table));
    let absent: Vec<_> = recorded.difference(&table).collect();
    assert!(absent.is_empty(), "not in {TABLE}: {absent:#?}");
    assert!(recorded.len() > 100, "{} rows", recorded.len());
}
