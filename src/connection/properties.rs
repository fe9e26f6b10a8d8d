//! Random conversations on one link, judged by what the server says of it to somebody else.

#[path = "../../tests/support/mod.rs"]
pub(crate) mod support;

use std::cell::RefCell;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{
    Config, FileFailurePersistence, RngAlgorithm, TestCaseResult, TestRunner,
};
use redis::{Connection, Value};
use support::server::Server;

use crate::connection::connection::Link;
use crate::connection::deadline::Deadline;
use crate::connection::endpoint::Endpoint;
use crate::connection::url::one as parse;
use crate::pool::manager::{Purpose, open};
use crate::protocol::connection_state::Expect;
use crate::protocol::resp::encode;
use crate::protocol::resp::encode::{DISCARD, EXEC, MULTI, UNWATCH};
use crate::settings::Settings;

const CONVERSATIONS: u32 = 10_000;
const PATIENCE: Duration = Duration::from_secs(20);
const KEYS: [&str; 3] = ["{k}0", "{k}1", "{k}2"];
/// What a user may lose and get back while the link is open.
const RIGHTS: [&str; 6] = ["watch", "unwatch", "multi", "exec", "discard", "incr"];

/// One command on the link and the reply it is sent for.
#[derive(Clone, Copy, Debug)]
enum Call {
    Watch(usize),
    WatchNothing,
    Unwatch,
    Multi,
    Queue(usize),
    QueueUnknown,
    Exec,
    Discard,
    Plain(usize),
    PlainUnknown,
}

#[derive(Clone, Debug)]
enum Step {
    /// Sent in one write.
    Say(Vec<Call>),
    /// Somebody else changes a key.
    Touch(usize),
    Deny(usize),
    Allow(usize),
    Kill,
}

fn call() -> impl Strategy<Value = Call> {
    let key = 0..KEYS.len();
    prop_oneof![
        5 => key.clone().prop_map(Call::Watch),
        1 => Just(Call::WatchNothing),
        2 => Just(Call::Unwatch),
        6 => Just(Call::Multi),
        6 => key.clone().prop_map(Call::Queue),
        1 => Just(Call::QueueUnknown),
        5 => Just(Call::Exec),
        3 => Just(Call::Discard),
        3 => key.prop_map(Call::Plain),
        1 => Just(Call::PlainUnknown),
    ]
}

/// Whole transactions, so that the ordinary way is walked as often as the odd ones.
fn transaction() -> impl Strategy<Value = Vec<Call>> {
    let key = 0..KEYS.len();
    (prop::collection::vec(key, 0..3), any::<bool>()).prop_map(|(keys, exec)| {
        let mut calls = vec![Call::Multi];
        calls.extend(keys.into_iter().map(Call::Queue));
        calls.push(if exec { Call::Exec } else { Call::Discard });
        calls
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => call().prop_map(|call| Step::Say(vec![call])),
        4 => prop::collection::vec(call(), 2..5).prop_map(Step::Say),
        4 => transaction().prop_map(Step::Say),
        3 => (0..KEYS.len()).prop_map(Step::Touch),
        2 => (0..RIGHTS.len()).prop_map(Step::Deny),
        1 => (0..RIGHTS.len()).prop_map(Step::Allow),
        1 => Just(Step::Kill),
    ]
}

impl Call {
    fn write(self, bytes: &mut Vec<u8>) {
        match self {
            Self::Watch(key) => encode::command(bytes, &["WATCH", KEYS[key]], |_| {}),
            Self::WatchNothing => encode::command(bytes, &["WATCH"], |_| {}),
            Self::Unwatch => bytes.extend_from_slice(UNWATCH),
            Self::Multi => bytes.extend_from_slice(MULTI),
            Self::Queue(key) | Self::Plain(key) => {
                encode::command(bytes, &["INCR", KEYS[key]], |_| {});
            }
            Self::QueueUnknown | Self::PlainUnknown => {
                encode::command(bytes, &["NOSUCHCOMMAND"], |_| {});
            }
            Self::Exec => bytes.extend_from_slice(EXEC),
            Self::Discard => bytes.extend_from_slice(DISCARD),
        }
    }

    /// What an orderly speaker says in its place, in MULTI or not.
    fn orderly(self, in_multi: bool) -> Self {
        match self {
            Self::Queue(key) if !in_multi => Self::Plain(key),
            Self::QueueUnknown if !in_multi => Self::PlainUnknown,
            Self::Exec if !in_multi => Self::Multi,
            Self::Discard if !in_multi => Self::Unwatch,
            Self::Unwatch if in_multi => Self::Exec,
            call => call,
        }
    }

    fn expect(self) -> Expect {
        match self {
            Self::Watch(_) | Self::WatchNothing => Expect::Watch,
            Self::Unwatch => Expect::Unwatch,
            Self::Multi => Expect::Multi,
            Self::Queue(_) | Self::QueueUnknown => Expect::Queued,
            Self::Exec => Expect::Exec,
            Self::Discard => Expect::Discard,
            Self::Plain(_) | Self::PlainUnknown => Expect::Plain,
        }
    }
}

/// The same calls as somebody would send them who knows the protocol.
fn put_in_order(calls: &[Call], mut in_multi: bool) -> Vec<Call> {
    let orderly = calls.iter().map(|call| {
        let call = call.orderly(in_multi);
        in_multi = match call {
            Call::Multi => true,
            Call::Exec | Call::Discard => false,
            _ => in_multi,
        };
        call
    });
    orderly.collect()
}

/// What the server must hold, by the documentation of its commands and not by our code.
#[derive(Debug, Default)]
struct Truth {
    multi: bool,
    watching: bool,
    /// Something happened after which replacing the link is no waste.
    odd: bool,
}

impl Truth {
    /// Before the answer: some calls are odd where they stand.
    fn foresee(&mut self, call: Call) {
        self.odd |= match call {
            Call::Queue(_) | Call::QueueUnknown | Call::Exec => !self.multi,
            Call::Unwatch => self.multi,
            _ => false,
        };
    }

    fn learn(&mut self, call: Call, reply: &Value) {
        let refused = matches!(reply, Value::ServerError(_));
        match call {
            Call::Watch(_) | Call::WatchNothing => self.watching |= !refused,
            Call::Multi => self.multi |= !refused,
            Call::Queue(_) | Call::QueueUnknown | Call::Plain(_) | Call::PlainUnknown => {}
            // EXEC ends a transaction also by being refused; these two do not.
            Call::Unwatch | Call::Discard if refused => self.odd = true,
            Call::Unwatch => self.watching = false,
            Call::Exec if !self.multi => {}
            Call::Discard | Call::Exec => (self.multi, self.watching) = (false, false),
        }
    }
}

/// What the server says of one of its clients.
#[derive(Debug)]
struct Seen {
    in_multi: bool,
    /// A key that it watches was touched.
    touched: bool,
    /// Valkey counts them.
    watches: Option<u64>,
}

/// A second connection.
struct Witness {
    connection: Connection,
    denied: bool,
}

impl Witness {
    fn of(server: &Server) -> Self {
        Self { connection: server.connection(), denied: false }
    }

    /// Looks at a client, after touching every key it may be watching if `touch`.
    fn look(&mut self, id: i64, touch: bool) -> Option<Seen> {
        let mut pipe = redis::pipe();
        if touch {
            KEYS.iter().for_each(|key| {
                pipe.cmd("INCR").arg(key).ignore();
            });
        }
        pipe.cmd("CLIENT").arg("LIST").arg("ID").arg(id);
        let (list,): (String,) = pipe.query(&mut self.connection).unwrap();
        let line = list.lines().next()?;
        let field = |name: &str| {
            line.split(' ').find_map(|field| Some(field.split_once('=')?).filter(|f| f.0 == name))
        };
        Some(Seen {
            in_multi: field("multi")?.1 != "-1",
            touched: field("flags")?.1.contains('d'),
            watches: field("watch").and_then(|watch| watch.1.parse().ok()),
        })
    }

    fn order(&mut self, words: &[&str]) {
        let () = redis::cmd(words[0]).arg(&words[1..]).query(&mut self.connection).unwrap();
    }

    /// The rights of a conversation's user, as they are when it begins.
    fn allow_everything(&mut self) {
        if self.denied {
            self.order(&["ACL", "SETUSER", "app", "+@all"]);
            self.denied = false;
        }
    }
}

/// How the server is reached.
struct Way {
    url: String,
    settings: Settings,
}

impl Way {
    fn plain(server: &Server) -> Self {
        Self { url: server.url_as("app", "secret"), settings: patient() }
    }

    #[cfg(feature = "tls-rustls")]
    fn tls(server: &support::tls::TlsServer) -> Self {
        let tls = crate::Tls::new().root_certificates(server.authority.pem());
        let url = format!("rediss://app:secret@localhost:{}/", server.port);
        Self { url, settings: Settings { tls: Some(tls), ..patient() } }
    }
}

fn patient() -> Settings {
    Settings { connect_timeout: PATIENCE, ..Settings::default() }
}

/// One conversation, with what is known of it.
struct Talk<'w> {
    witness: &'w mut Witness,
    link: Link,
    id: i64,
    truth: Truth,
}

impl<'w> Talk<'w> {
    fn begin(way: &Way, resp3: bool, witness: &'w mut Witness) -> Self {
        witness.allow_everything();
        let protocol = if resp3 { "?protocol=resp3" } else { "" };
        let url = format!("{}{protocol}", way.url);
        let endpoint = Endpoint::new(parse(url.as_str()).unwrap(), &way.settings).unwrap();
        let mut link = open(&endpoint, &way.settings, Purpose::Pooled, 0, None).unwrap();
        let id = redis::cmd("CLIENT").arg("ID").get_packed_command();
        let deadline = Deadline::after(PATIENCE);
        link.send(&id, &[(Expect::Plain, 1)], deadline).unwrap();
        let id = redis::from_redis_value(link.value(deadline).unwrap()).unwrap();
        Self { witness, link, id, truth: Truth::default() }
    }

    fn step(&mut self, step: &Step) -> TestCaseResult {
        match step {
            Step::Say(calls) => self.say(calls)?,
            Step::Touch(key) => self.witness.order(&["INCR", KEYS[*key]]),
            Step::Deny(right) => {
                self.witness.denied = true;
                self.witness.order(&["ACL", "SETUSER", "app", &format!("-{}", RIGHTS[*right])]);
            }
            Step::Allow(right) => {
                self.witness.order(&["ACL", "SETUSER", "app", &format!("+{}", RIGHTS[*right])]);
            }
            Step::Kill => {
                self.witness.order(&["CLIENT", "KILL", "ID", &self.id.to_string()]);
                self.truth.odd = true;
            }
        }
        self.judge()
    }

    fn say(&mut self, calls: &[Call]) -> TestCaseResult {
        let deadline = Deadline::after(PATIENCE);
        let mut bytes = Vec::new();
        calls.iter().for_each(|call| call.write(&mut bytes));
        let expected: Vec<_> = calls.iter().map(|call| (call.expect(), 1)).collect();
        if self.link.send(&bytes, &expected, deadline).is_err() {
            return Ok(());
        }
        for call in calls {
            prop_assert!(!self.link.state().is_clean(), "clean before {call:?} was answered");
            self.truth.foresee(*call);
            let Ok(reply) = self.link.value(deadline) else { break };
            self.truth.learn(*call, &reply);
        }
        Ok(())
    }

    fn judge(&mut self) -> TestCaseResult {
        let clean = self.link.state().is_clean();
        // To touch what a dirty link watches would change the rest of its conversation.
        let Some(seen) = self.witness.look(self.id, clean) else { return Ok(()) };
        if clean {
            prop_assert!(!seen.in_multi, "clean, and the server has it in MULTI");
            prop_assert!(!seen.touched, "clean, and the server has it watching");
            prop_assert!(seen.watches.unwrap_or(0) == 0, "clean, and the server has it watching");
        } else if !self.truth.odd {
            prop_assert_eq!(self.link.state().tainted(), None, "nothing odd happened");
            prop_assert!(seen.in_multi || self.truth.watching, "a clean link was not recognised");
        }
        if !self.truth.odd {
            prop_assert_eq!(self.truth.multi, seen.in_multi, "the test's own model is wrong");
            let state = self.link.state();
            let known = (state.is_in_multi(), state.is_watching());
            prop_assert_eq!(known, (self.truth.multi, self.truth.watching));
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.link.state().tainted().is_some()
    }
}

fn config(cases: u32) -> Config {
    Config {
        cases,
        max_shrink_iters: 2_000,
        source_file: Some(file!()),
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource(
            "proptest-regressions",
        ))),
        // The default one takes most of the time of a debug build.
        rng_algorithm: RngAlgorithm::XorShift,
        ..Config::default()
    }
}

#[test]
fn a_link_is_never_called_clean_while_the_server_has_it_in_multi_or_watching() {
    #[cfg(feature = "tls-rustls")]
    let tls = support::tls::TlsServer::start();
    #[cfg(feature = "tls-rustls")]
    let (server, ways) = (&tls.server, [Way::plain(&tls.server), Way::tls(&tls)]);
    #[cfg(not(feature = "tls-rustls"))]
    let server = &Server::start();
    #[cfg(not(feature = "tls-rustls"))]
    let ways = [Way::plain(server), Way::plain(server)];
    server.acl(&["SETUSER", "app", "on", ">secret", "~*", "&*", "+@all"]);
    let witness = RefCell::new(Witness::of(server));
    let counted = RefCell::new([0_u64; 3]);
    // A hand-shake of TLS takes longer than the conversation.
    let (orderly, tls) = (prop::bool::weighted(0.7), prop::bool::weighted(0.1));
    let conversations = (orderly, any::<bool>(), tls, prop::collection::vec(step(), 1..10));
    let checked = TestRunner::new(config(CONVERSATIONS)).run(
        &conversations,
        |(orderly, resp3, tls, steps)| {
            let mut witness = witness.borrow_mut();
            let mut talk = Talk::begin(&ways[usize::from(tls)], resp3, &mut witness);
            let mut counted = counted.borrow_mut();
            counted[0] += 1;
            for step in &steps {
                match step {
                    Step::Say(calls) if orderly => {
                        talk.step(&Step::Say(put_in_order(calls, talk.truth.multi)))?;
                    }
                    step => talk.step(step)?,
                }
                counted[1] += 1;
                if talk.is_over() {
                    counted[2] += 1;
                    break;
                }
            }
            Ok(())
        },
    );
    checked.unwrap_or_else(|failure| panic!("{failure}"));
    let [conversations, steps, tainted] = *counted.borrow();
    println!("{conversations} conversations, {steps} steps, {tainted} ended tainted");
}

#[test]
fn an_exec_that_the_server_does_not_know_is_no_proof_that_multi_is_over() {
    let server = Server::with(&["--rename-command", "EXEC", ""]);
    server.acl(&["SETUSER", "app", "on", ">secret", "~*", "&*", "+@all"]);
    let mut witness = Witness::of(&server);
    let mut talk = Talk::begin(&Way::plain(&server), false, &mut witness);
    talk.step(&Step::Say(vec![Call::Multi, Call::Queue(0)])).unwrap();
    talk.truth.odd = true;
    talk.step(&Step::Say(vec![Call::Exec])).unwrap();
    assert!(talk.is_over());
}
