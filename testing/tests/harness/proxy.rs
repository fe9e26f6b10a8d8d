//! Every fault of the proxy, as plain connections and the server see it.

use super::{SHORT, SOON};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use redis::{Connection, RedisResult, cmd};
use socket2::SockRef;

use rediscope_testing::front::Front;
use rediscope_testing::proxy::Fault::{self, *};
use rediscope_testing::proxy::Trigger::{self, *};
use rediscope_testing::proxy::{Proxy, Script, Which};
use rediscope_testing::server::Server;
use rediscope_testing::{connect, eventually, packed, unique};

/// A server's replies to [`transaction`], byte for byte.
const ANSWER: &str = "+OK\r\n+QUEUED\r\n*1\r\n+OK\r\n";
/// Offset at which EXEC's reply begins in it.
const ARRAY: usize = 14;

fn ping(connection: &mut Connection) -> RedisResult<String> {
    cmd("PING").query(connection)
}

/// `MULTI`, one `SET`, `EXEC`.
fn transaction(key: &str) -> Vec<u8> {
    [&["MULTI"][..], &["SET", key, "v"], &["EXEC"]].map(packed).concat()
}

fn exists(server: &Server, key: &str) -> bool {
    server.ask(&["EXISTS", key])
}

fn raw(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.address()).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

/// Sends a transaction under a rule, in writes of some bytes, and returns what came back.
fn send_under(proxy: &Proxy, rule: (Trigger, Fault), key: &str, bytes: usize) -> String {
    proxy.script(Which::Next, rule);
    let mut stream = raw(proxy);
    // A cut may come in the middle of the writing, as an RST as well as a FIN.
    let _ = transaction(key).chunks(bytes).try_for_each(|part| stream.write_all(part));
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

#[test]
fn a_proxy_without_rules_changes_nothing_and_counts_everything() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let mut connection = connect(&proxy.url());
    proxy.take_journal();
    let (turns, commands) = (proxy.turns(), proxy.commands());
    let big = "x".repeat(300_000);
    cmd("SET").arg("k").arg(&big).exec(&mut connection).unwrap();
    assert!(cmd("GET").arg("k").query::<String>(&mut connection).unwrap() == big);
    connection.send_packed_command(&transaction("k")).unwrap();
    (0..3).for_each(|_| drop(connection.recv_response().unwrap()));
    assert_eq!((proxy.turns() - turns, proxy.commands() - commands), (3, 5));
    let names: Vec<String> = proxy.take_journal().into_iter().map(|(_, name)| name).collect();
    assert_eq!(names, ["SET", "GET", "MULTI", "SET", "EXEC"]);
    assert!(proxy.client_bytes() > 300_000 && proxy.server_bytes() > 300_000);
    assert_eq!((proxy.accepted(), proxy.connections(), proxy.fired()), (1, 1, 0));
    drop(connection);
    eventually(SOON, "the end is passed on", || proxy.connections() + server.clients() == 0);
}

#[test]
fn a_transaction_cut_before_exec_is_not_applied_and_one_cut_behind_it_is() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let before = [
        BeforeCommandNamed("exec"),
        BeforeCommand(3),
        InsideCommandNamed("EXEC", 0),
        InsideCommandNamed("EXEC", packed(&["EXEC"]).len() as u64 - 1),
        InsideCommand(3, 5),
        ClientBytes(transaction("before").len() as u64 - 1),
    ];
    let behind = [
        AfterCommandNamed("EXEC"),
        AfterCommand(3),
        InsideCommand(3, 1_000),
        BeforeReplyTo("EXEC"),
        BeforeReply(3),
    ];
    for (fault, bytes) in [(Cut, 1_000), (Cut, 7), (Reset, 1_000), (Reset, 1)] {
        for trigger in before {
            let answer = send_under(&proxy, (trigger, fault), "before", bytes);
            assert!(ANSWER[..ARRAY].starts_with(&answer), "{trigger:?} {answer:?}");
            eventually(SOON, "the server is left alone", || server.clients() == 0);
            assert!(!exists(&server, "before"), "{trigger:?}");
        }
        for trigger in behind {
            let key = unique("behind");
            let answer = send_under(&proxy, (trigger, fault), &key, bytes);
            assert!(ANSWER[..ARRAY].starts_with(&answer), "{trigger:?} {answer:?}");
            eventually(SOON, "the transaction is applied", || exists(&server, &key));
        }
    }
    assert_eq!(proxy.fired(), 4 * (before.len() + behind.len()));
}

#[test]
fn a_reply_is_cut_at_exactly_the_given_byte() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    for bytes in 0..=ANSWER.len() - ARRAY + 3 {
        let end = (ARRAY + bytes).min(ANSWER.len());
        for trigger in [InsideReplyTo("EXEC", bytes as u64), InsideReply(3, bytes as u64)] {
            let answer = send_under(&proxy, (trigger, Cut), "k", 1_000);
            assert_eq!(answer, ANSWER[..end], "{trigger:?}");
        }
    }
    for (trigger, end) in [(AfterReply(2), ARRAY), (AfterReplyTo("multi"), 5)] {
        assert_eq!(send_under(&proxy, (trigger, Cut), "k", 1_000), ANSWER[..end]);
    }
}

#[test]
fn nested_nil_and_resp3_replies_count_as_one_each_and_pushes_as_none() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let commands: [&[&str]; 9] = [
        &["HELLO", "3"],
        &["CLIENT", "TRACKING", "ON"],
        &["EVAL", "return {1,{2,{},{'a',false}},{{}},'tail'}", "0"],
        &["GET", "none"],
        &["HSET", "h", "f", "v"],
        &["HGETALL", "h"],
        &["DEL", "h"],
        &["EVAL", "return {double=1.5}", "0"],
        &["ECHO", "cut"],
    ];
    let read_under = |script: Script| {
        proxy.script(Which::Next, script);
        let mut stream = raw(&proxy);
        stream.write_all(&commands.map(packed).concat()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        // HELLO's reply names the connection, which differs.
        answer.split_once("$4\r\nmode").unwrap().1.to_owned()
    };
    let by_name = read_under((BeforeReplyTo("ECHO"), Cut).into());
    assert!(by_name.contains(">2\r\n$10\r\ninvalidate"), "{by_name}");
    assert!(by_name.ends_with(",1.5\r\n"), "{by_name}");
    let by_number = read_under([(Now, OneByteAtATime), (AfterReply(8), Cut)].into());
    assert_eq!(by_number, by_name);
}

#[test]
fn one_side_can_be_cut_while_the_other_stays() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let mut connection = connect(&proxy.url());
    proxy.arm((BeforeCommandNamed("PING"), CutClientSide));
    assert!(ping(&mut connection).unwrap_err().is_connection_dropped());
    assert_eq!((proxy.connections(), server.clients()), (0, 1));
    proxy.cut_all();
    eventually(SOON, "the server side is gone too", || server.clients() == 0);

    proxy.disarm();
    let mut connection = connect(&proxy.url());
    connection.set_read_timeout(Some(SHORT)).unwrap();
    proxy.arm((BeforeCommandNamed("PING"), CutServerSide));
    assert!(ping(&mut connection).unwrap_err().is_timeout());
    eventually(SOON, "the server side is gone", || server.clients() == 0);
    assert_eq!(proxy.connections(), 1);
}

#[test]
fn held_requests_arrive_late_even_when_their_client_is_gone() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    for rule in
        [(BeforeCommandNamed("EXEC"), HoldRequests), (InsideCommandNamed("SET", 9), BlackHole)]
    {
        let (key, fired) = (unique("late"), proxy.fired());
        proxy.script(Which::Next, rule);
        let mut stream = raw(&proxy);
        stream.write_all(&transaction(&key)).unwrap();
        eventually(SOON, "the rule fires", || proxy.fired() > fired);
        drop(stream);
        eventually(SOON, "the server has the beginning", || server.clients() == 1);
        assert!(!exists(&server, &key));
        proxy.release();
        eventually(SOON, "the late EXEC is applied", || exists(&server, &key));
        eventually(SOON, "the client's end comes late too", || server.clients() == 0);
    }
}

#[test]
fn held_replies_come_late_and_swallowed_ones_never() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let mut connection = connect(&proxy.url());
    connection.set_read_timeout(Some(SHORT)).unwrap();
    proxy.arm((AfterCommandNamed("PING"), HoldReplies));
    assert!(ping(&mut connection).unwrap_err().is_timeout());
    connection.set_read_timeout(Some(SOON)).unwrap();
    proxy.release();
    assert_eq!(cmd("ECHO").arg("x").query::<String>(&mut connection).unwrap(), "x");

    let mut stream = raw(&proxy);
    proxy.arm([
        (BeforeReply(1), SwallowReply),
        (InsideReply(2, 2), SwallowReply),
        (AfterCommand(4), SwallowReply),
        (BeforeCommand(5), SwallowReply),
    ]);
    for word in ["first", "second", "third", "fourth", "fifth", "last"] {
        stream.write_all(&packed(&["ECHO", word])).unwrap();
    }
    let expected = "$6$5\r\nthird\r\n$4\r\nlast\r\n";
    let mut answer = vec![0; expected.len()];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(String::from_utf8(answer).unwrap(), expected);
}

#[test]
fn bytes_can_be_delayed_crumbled_and_dropped() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let mut connection = connect(&proxy.url());
    let mut took = |proxy: &Proxy, script: Script| {
        proxy.arm(script);
        let begun = Instant::now();
        ping(&mut connection).unwrap();
        begun.elapsed()
    };
    assert!(took(&proxy, (BeforeCommand(1), Delay(SHORT)).into()) >= SHORT);
    assert!(took(&proxy, (InsideReply(1, 3), Delay(SHORT)).into()) >= SHORT);
    assert!(took(&proxy, (Now, Delay(SHORT)).into()) >= SHORT);
    took(&proxy, (Now, OneByteAtATime).into());
    proxy.set_delay(SHORT);
    assert!(took(&proxy, Script::new()) >= 2 * SHORT);
    proxy.set_delay(Duration::ZERO);
    proxy.arm((InsideCommandNamed("SET", 3), DropRequestTail));
    connection.set_read_timeout(Some(SHORT)).unwrap();
    let set = cmd("SET").arg("k").arg("v").exec(&mut connection);
    assert!(set.unwrap_err().is_timeout() && ping(&mut connection).unwrap_err().is_timeout());
    assert!(!exists(&server, "k"));
    assert_eq!((proxy.connections(), server.clients(), proxy.fired()), (1, 1, 5));
}

#[test]
fn a_reply_is_replaced_and_a_command_gets_a_reply_without_the_server() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    for bytes in [1, 1000] {
        for (rule, key, expected) in [
            (
                (BeforeReplyTo("EXEC"), Answer("-ERR lost\r\n")),
                "a",
                "+OK\r\n+QUEUED\r\n-ERR lost\r\n",
            ),
            ((BeforeReplyTo("SET"), Answer("-ERR no\r\n")), "b", "+OK\r\n-ERR no\r\n*1\r\n+OK\r\n"),
            ((BeforeCommandNamed("SET"), Refuse("-ERR no\r\n")), "c", "+OK\r\n-ERR no\r\n*0\r\n"),
            (
                (BeforeCommandNamed("EXEC"), Refuse("-ERR no\r\n")),
                "d",
                "+OK\r\n+QUEUED\r\n-ERR no\r\n",
            ),
        ] {
            proxy.script(Which::Next, rule);
            let mut stream = raw(&proxy);
            for part in transaction(key).chunks(bytes) {
                stream.write_all(part).unwrap();
            }
            let mut answer = vec![0; expected.len()];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(String::from_utf8(answer).unwrap(), expected);
            assert_eq!(exists(&server, key), matches!(key, "a" | "b"), "{key}");
        }
        let _: () = server.ask(&["DEL", "a", "b"]);
    }
    assert_eq!(proxy.fired(), 8);
}

#[test]
fn a_front_passes_bytes_on_to_the_proxy() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let front = Front::unix(proxy.address());
    let mut connection = connect(front.url());
    assert!(ping(&mut connection).is_ok());
    proxy.arm((BeforeReplyTo("PING"), Answer("-ERR lost\r\n")));
    assert_eq!(ping(&mut connection).unwrap_err().code(), Some("ERR"));
    proxy.cut_all();
    assert!(ping(&mut connection).is_err());
}

#[test]
fn a_script_fires_on_the_connection_it_was_written_for() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    proxy.script(Which::Nth(2), (BeforeCommandNamed("PING"), Cut));
    let mut three = [0; 3].map(|_| connect(&proxy.url()));
    assert_eq!(three.each_mut().map(|c| ping(c).is_ok()), [true, false, true]);
    proxy.arm(Script::from((BeforeCommandNamed("PING"), Reset)).once());
    let mut two = [0; 2].map(|_| connect(&proxy.url()));
    assert_eq!(two.each_mut().map(|c| ping(c).is_ok()), [false, true]);
    proxy.arm((BeforeCommandNamed("PING"), Cut));
    proxy.disarm();
    assert!(ping(&mut three[0]).is_ok());
    proxy.reset_all();
    assert!(ping(&mut three[0]).is_err());
    assert_eq!((proxy.connections(), proxy.fired()), (0, 2));
}

#[test]
fn new_connections_can_be_refused_muted_or_sent_elsewhere() {
    let (server, other) = (Server::start(), Server::start());
    let proxy = Proxy::to(&server);
    let client = redis::Client::open(proxy.url()).unwrap();
    let fails = |within| client.get_connection_with_timeout(within).err().unwrap();
    proxy.refuse_new(true);
    assert!(!fails(SOON).is_timeout());
    proxy.refuse_new(false);
    proxy.mute_new(true);
    assert!(fails(SHORT).is_timeout());
    proxy.mute_new(false);
    proxy.close_listener();
    assert!(fails(SOON).is_connection_refusal());
    proxy.reopen_listener();
    proxy.set_upstream(other.address());
    let mut connection = connect(&proxy.url());
    assert_eq!((proxy.accepted(), server.clients(), other.clients()), (3, 0, 1));
    proxy.black_hole_all();
    connection.set_read_timeout(Some(SHORT)).unwrap();
    assert!(ping(&mut connection).unwrap_err().is_timeout());
    proxy.cut_all();
    assert!(ping(&mut connection).is_err());
}

#[test]
fn a_connection_that_is_being_opened_is_silent_too() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    for _ in 0..20 {
        let accepted = proxy.accepted();
        let mut stream = thread::scope(|scope| {
            let client = scope.spawn(|| raw(&proxy));
            // No pause: the proxy is to be caught on its way to the server.
            while proxy.accepted() == accepted {
                thread::yield_now();
            }
            proxy.silence();
            client.join().unwrap()
        });
        stream.set_read_timeout(Some(SHORT)).unwrap();
        stream.write_all(&packed(&["PING"])).unwrap();
        assert_eq!(stream.read(&mut [0]).map_err(|error| error.kind()), Err(ErrorKind::WouldBlock));
        proxy.mute_new(false);
        proxy.cut_all();
    }
}

#[test]
fn the_servers_death_is_passed_on_and_a_stuck_write_delays_no_other_connection() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let mut connection = connect(&proxy.url());
    server.sigkill();
    assert_eq!(ping(&mut connection).err().map(|error| error.is_timeout()), Some(false));
    eventually(SOON, "the connection is gone", || proxy.connections() == 0);

    // A server that never reads, behind the smallest buffers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    SockRef::from(&silent).set_recv_buffer_size(1024).unwrap();
    let proxy = Proxy::to_address(silent.local_addr().unwrap());
    proxy.shrink_buffers();
    let mut stream = raw(&proxy);
    stream.set_write_timeout(Some(SHORT)).unwrap();
    let part = packed(&["ECHO", &"x".repeat(1 << 20)]);
    while stream.write_all(&part).is_ok() {}
    let begun = Instant::now();
    drop(proxy);
    assert!(begun.elapsed() < SOON);
}
