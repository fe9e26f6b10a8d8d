//! A connection that is a task, with a real server and with a peer that fails.
//!
//! Guarantee: tasks

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use redis::Value;
use rediscope_testing::tasks::single;
use tokio::runtime::{Builder, Handle, Runtime};

use crate::connection::connection::{Connection, Interruption};
use crate::connection::deadline::Deadline;
use crate::connection::endpoint::Endpoint;
use crate::connection::handshake::OpenOptions;
use crate::connection::io::Io;
use crate::connection::tasks::io::{Tasks, spawn_connection};
use crate::connection::tasks::wire::{ConnectionTask, TaskWire};
use crate::connection::url::one as parse;
use crate::dns::Resolver;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::pool::tests::{SOON, Server, config_of_one, eventually};
use crate::protocol::connection_state::{CloseReason, Expect};
use crate::protocol::handshake::Purpose;
use crate::protocol::resp::encode::MULTI;
use crate::protocol::resp::reply::Reply;
use crate::settings::credentials::{Credentials, CredentialsProvider, Provider};
use crate::settings::settings::Settings;

const LIMIT: Duration = Duration::from_millis(400);

/// A runtime whose connections are polled while the test's own thread does something else.
fn in_background() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn options() -> OpenOptions {
    OpenOptions {
        purpose: Purpose::Transactional,
        multi_apart: false,
        generation: 0,
        deadline: None,
    }
}

async fn open(server: &Server) -> Connection<TaskWire> {
    let (config, endpoint) = config_of_one(server, SOON);
    Tasks::open(&endpoint, &config.settings, options()).await.unwrap()
}

async fn open_at(url: &str) -> Result<Connection<TaskWire>, ConnectionError> {
    let settings = Settings { connect_timeout: SOON, ..Settings::default() };
    let endpoint = Endpoint::new(parse(url).unwrap(), &settings).unwrap();
    Tasks::open(&endpoint, &settings, options()).await
}

fn soon() -> Deadline {
    Deadline::after(SOON)
}

fn pipe(commands: &[&[&str]]) -> Vec<u8> {
    let mut pipe = redis::pipe();
    for words in commands {
        pipe.cmd(words[0]).arg(&words[1..]);
    }
    pipe.get_packed_pipeline()
}

/// A peer of one connection. It answers the handshake as a server does, and then runs `then`.
fn peer<T: Send + 'static>(
    then: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> (String, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        let mut come = Vec::new();
        let mut answered = 0;
        // The last command of the handshake is DISCARD.
        loop {
            let mut bytes = [0; 1024];
            let read = peer.read(&mut bytes).unwrap();
            come.extend_from_slice(&bytes[..read]);
            let text = String::from_utf8_lossy(&come).to_uppercase();
            let commands = text.matches("*").count();
            for _ in answered..commands {
                peer.write_all(b"+OK\r\n").unwrap();
            }
            answered = commands;
            if text.ends_with("DISCARD\r\n") {
                return then(peer);
            }
        }
    });
    (url, thread)
}

#[derive(Default)]
struct WakeCount(AtomicUsize);

impl Wake for WakeCount {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

async fn no_task_is_left() {
    let begun = Instant::now();
    while Handle::current().metrics().num_alive_tasks() > 0 {
        assert!(begun.elapsed() < SOON, "a task is left");
        tokio::task::yield_now().await;
    }
}

#[test]
fn a_connection_replies_and_its_task_ends_with_it() {
    let server = Server::start();
    single().block_on(async {
        let mut connection = open(&server).await;
        for _ in 0..3 {
            connection.ping(soon()).await.unwrap().unwrap();
        }
        let bytes = pipe(&[&["SET", "a", "1"], &["GET", "a"]]);
        let replies = connection.ask_all(&bytes, 2, soon()).await.unwrap();
        assert_eq!(replies, [Value::Okay, Value::BulkString(b"1".into())]);
        assert_eq!(connection.close_reason(Instant::now(), 0), None);
        let task = connection.wire().task().clone();
        assert_eq!(task.runtime(), Handle::current().id());
        assert!(!task.is_closed());
        assert_eq!(Handle::current().metrics().num_alive_tasks(), 1);
        drop(connection);
        assert!(task.is_closed());
        no_task_is_left().await;
    });
    eventually(SOON, "the server sees the end", || server.clients().is_empty());
}

#[test]
fn an_exchange_wakes_its_caller_once() {
    let server = Server::start();
    let runtime = in_background();
    let mut connection = runtime.block_on(open(&server));
    let bytes = pipe(&[&["MULTI"], &["INCR", "a"], &["INCR", "b"], &["EXEC"]]);
    let expected = [(Expect::Multi, 1), (Expect::Queued, 2), (Expect::Exec, 1)];
    for nth in 1..100 {
        let wakes = Arc::new(WakeCount::default());
        let waker = Waker::from(Arc::clone(&wakes));
        let mut replies = Vec::new();
        let mut take = |_, reply| replies.push(reply);
        let mut exchange = Box::pin(connection.exchange(&bytes, &expected, soon(), &mut take));
        let mut polls = 0;
        while exchange.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            polls += 1;
            eventually(SOON, "the caller is woken", || wakes.0.load(Ordering::SeqCst) == polls);
        }
        assert!(polls <= 1, "{polls}");
        drop(exchange);
        assert_eq!(replies.len(), 3, "{replies:?}");
        assert_eq!(replies[2], Reply::Value(Value::Array(vec![Value::Int(nth); 2])));
    }
}

#[test]
fn a_closed_peer_is_seen_without_a_poll_of_the_runtime() {
    let server = Server::start();
    let runtime = single();
    let mut connection = runtime.block_on(open(&server));
    connection.mark_taken();
    connection.check_socket().unwrap();
    connection.mark_taken();
    let killed: i64 = redis::cmd("CLIENT")
        .arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"])
        .query(&mut server.connect().unwrap())
        .unwrap();
    assert_eq!(killed, 1);
    let task = connection.wire().task().clone();
    assert!(!task.is_closed(), "no task has been polled");
    eventually(SOON, "the close has arrived", || connection.check_socket().is_err());
    assert_eq!(connection.close_reason(Instant::now(), 0), Some(CloseReason::Closed));
    runtime.block_on(async {
        no_task_is_left().await;
        let error = connection.ping(soon()).await.unwrap_err();
        assert_ne!(error.kind(), ConnectionErrorKind::TimedOut);
    });
    assert!(task.is_closed());
}

#[test]
fn a_peer_that_closes_an_idle_connection_ends_its_task() {
    let server = Server::start();
    single().block_on(async {
        let connection = open(&server).await;
        let task = connection.wire().task().clone();
        let kill = || {
            let mut kill = redis::cmd("CLIENT");
            kill.arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"]);
            let _: i64 = kill.query(&mut server.connect().unwrap()).unwrap();
        };
        kill();
        no_task_is_left().await;
        assert!(task.is_closed());
        drop(connection);
    });
}

#[test]
fn a_silent_peer_ends_a_call_at_its_deadline() {
    let runtime = single();
    let (over, is_over) = mpsc::channel::<()>();
    let (url, thread) = peer(move |_peer| is_over.recv());
    runtime.block_on(async {
        let mut connection = open_at(&url).await.unwrap();
        // The timer is set for a longer deadline first.
        let mut long = Box::pin(connection.ping(soon()));
        let mut context = Context::from_waker(Waker::noop());
        assert!(long.as_mut().poll(&mut context).is_pending());
        tokio::task::yield_now().await;
        drop(long);
        let begun = Instant::now();
        let error = connection.ping(Deadline::after(LIMIT)).await.unwrap_err();
        assert_eq!(error.kind(), ConnectionErrorKind::TimedOut);
        assert!(begun.elapsed() >= LIMIT && begun.elapsed() < 20 * LIMIT, "{:?}", begun.elapsed());
        assert_eq!(connection.close_reason(Instant::now(), 0), Some(CloseReason::TimedOut));
        no_task_is_left().await;
    });
    drop(over);
    let _: Result<(), _> = thread.join().unwrap();
}

/// The clock of tokio goes forward by itself while it is paused.
#[test]
fn a_paused_clock_neither_shortens_nor_prolongs_a_deadline() {
    let (url, thread) = peer(|mut peer| {
        let mut bytes = [0; 1024];
        let _: usize = peer.read(&mut bytes).unwrap();
        std::thread::sleep(LIMIT / 4);
        peer.write_all(b"+PONG\r\n").unwrap();
        let mut rest = Vec::new();
        let _: usize = peer.read_to_end(&mut rest).unwrap();
    });
    single().block_on(async {
        let mut connection = open_at(&url).await.unwrap();
        tokio::time::pause();
        connection.ping(Deadline::after(LIMIT * 10)).await.unwrap().unwrap();
        let begun = Instant::now();
        let error = connection.ping(Deadline::after(LIMIT)).await.unwrap_err();
        assert_eq!(error.kind(), ConnectionErrorKind::TimedOut);
        assert!(begun.elapsed() >= LIMIT && begun.elapsed() < 20 * LIMIT, "{:?}", begun.elapsed());
        let begun = Instant::now();
        Tasks::pause(LIMIT).await;
        assert!(begun.elapsed() >= LIMIT);
    });
    thread.join().unwrap();
}

#[test]
fn a_call_ends_when_the_runtime_of_its_connection_is_shut_down() {
    let runtime = in_background();
    let (over, is_over) = mpsc::channel::<()>();
    let (url, thread) = peer(move |_peer| is_over.recv());
    let mut connection = runtime.block_on(open_at(&url)).unwrap();
    let task = connection.wire().task().clone();
    let begun = Instant::now();
    let shut_down = std::thread::spawn(move || {
        std::thread::sleep(LIMIT / 4);
        drop(runtime);
    });
    let error = single().block_on(connection.ping(soon())).unwrap_err();
    assert_eq!(error.kind(), ConnectionErrorKind::Closed);
    assert!(begun.elapsed() < SOON / 2);
    shut_down.join().unwrap();
    assert!(task.is_closed());
    assert!(task.adopt(Box::new(async {})).is_err());
    drop(connection);
    drop(over);
    let _: Result<(), _> = thread.join().unwrap();
}

#[test]
fn a_connection_may_be_dropped_outside_of_a_runtime_and_after_its_end() {
    let server = Server::start();
    let runtime = in_background();
    let [before, after, in_a_call] = [(); 3].map(|()| runtime.block_on(open(&server)));
    drop(before);
    eventually(SOON, "the server sees the end", || server.clients().len() == 2);
    let mut in_a_call = Box::pin(async move {
        let mut connection = in_a_call;
        // A reply may have come before this thread looks.
        loop {
            if let Err(lost) = connection.ping(soon()).await {
                return lost;
            }
        }
    });
    let mut context = Context::from_waker(Waker::noop());
    assert!(in_a_call.as_mut().poll(&mut context).is_pending());
    drop(runtime);
    eventually(SOON, "the server sees the end", || server.clients().is_empty());
    drop(after);
    drop(in_a_call);
    let runtime = single();
    let connection = runtime.block_on(open(&server));
    drop(runtime);
    drop(connection);
}

#[test]
fn a_connection_is_shut_down_while_no_task_is_polled() {
    let server = Server::start();
    let runtime = single();
    let mut connection = runtime.block_on(open(&server));
    connection.wire().task().shut_down();
    eventually(SOON, "the server sees the end", || server.clients().is_empty());
    let error = runtime.block_on(connection.ping(soon())).unwrap_err();
    assert_eq!(error.kind(), ConnectionErrorKind::Closed);
    runtime.block_on(no_task_is_left());
}

#[test]
fn large_messages_and_replies_go_through() {
    let server = Server::start();
    single().block_on(async {
        let mut connection = open(&server).await;
        let value = "x".repeat(40 << 20);
        let bytes = pipe(&[&["SET", "large", &value], &["GET", "large"]]);
        let replies = connection.ask_all(&bytes, 2, soon()).await.unwrap();
        assert!(replies[1] == Value::BulkString(value.into_bytes()));
        // The replies come while the message is being written.
        let many = vec![&["GET", "large"][..]; 20];
        let echo = "y".repeat(4 << 20);
        let mut commands = many;
        let last = ["ECHO", &echo];
        commands.push(&last);
        let bytes = pipe(&commands);
        let replies = connection.ask_all(&bytes, 21, soon()).await.unwrap();
        assert_eq!(replies.len(), 21);
        let small = vec![&["PING"][..]; 100_000];
        let replies = connection.ask_all(&pipe(&small), 100_000, soon()).await.unwrap();
        assert_eq!(replies.len(), 100_000);
        assert_eq!(connection.close_reason(Instant::now(), 0), None);
    });
}

#[test]
fn bytes_that_a_task_did_not_send_are_counted_exactly() {
    let (go_on, may_go_on) = mpsc::channel::<()>();
    let (url, thread) = peer(move |mut peer| {
        may_go_on.recv().unwrap();
        let mut came = Vec::new();
        peer.read_to_end(&mut came).unwrap();
        came.len()
    });
    let bytes = vec![b'x'; 64 << 20];
    let left = single().block_on(async {
        let mut connection = open_at(&url).await.unwrap();
        let begun = Instant::now();
        let expected = [(Expect::Plain, 1)];
        let limit = Deadline::after(LIMIT);
        let sent = connection.exchange(&bytes, &expected, limit, &mut |_, _| {}).await;
        let Err(Interruption { left: Some(left), cause }) = sent else { panic!("all were sent") };
        assert_eq!(cause.kind(), ConnectionErrorKind::TimedOut);
        assert!(begun.elapsed() < 20 * LIMIT, "{:?}", begun.elapsed());
        no_task_is_left().await;
        left
    });
    go_on.send(()).unwrap();
    assert_eq!(thread.join().unwrap(), left);
    // Without time nothing is sent.
    let (url, thread) = peer(|mut peer| peer.read(&mut [0]).unwrap());
    single().block_on(async {
        let mut connection = open_at(&url).await.unwrap();
        let (expected, over) = ([(Expect::Plain, 1)], Deadline::after(Duration::ZERO));
        let sent = connection.exchange(&bytes, &expected, over, &mut |_, _| {}).await;
        assert_eq!(sent.err().map(|interruption| interruption.left), Some(Some(0)));
    });
    assert_eq!(thread.join().unwrap(), 0);
}

/// The peer closes after each byte of its replies in turn.
#[test]
fn a_connection_that_is_cut_at_each_byte_of_its_replies_ends_the_call() {
    let replies = b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n:1\r\n$3\r\nabc\r\n";
    let bytes = pipe(&[&["MULTI"], &["INCR", "a"], &["GET", "b"], &["EXEC"]]);
    let expected = [(Expect::Multi, 1), (Expect::Queued, 2), (Expect::Exec, 1)];
    for cut in 0..=replies.len() {
        for reset in [false, true] {
            let length = bytes.len();
            let (url, thread) = peer(move |mut peer| {
                // With a byte unread, the close is a reset.
                let mut come = vec![0; if reset { length - 1 } else { length }];
                peer.read_exact(&mut come).unwrap();
                peer.write_all(&replies[..cut]).unwrap();
            });
            single().block_on(async {
                let mut connection = open_at(&url).await.unwrap();
                let mut taken = Vec::new();
                let mut take = |_, reply: Reply| taken.push(reply);
                let ended = connection.exchange(&bytes, &expected, soon(), &mut take).await;
                match ended {
                    Ok(()) => assert_eq!(cut, replies.len(), "{taken:?}"),
                    Err(Interruption { left, cause }) => {
                        assert!(reset || cut < replies.len(), "{cut}");
                        assert_eq!(left, None);
                        assert_eq!(cause.kind(), ConnectionErrorKind::Closed, "{cause}");
                    }
                }
                no_task_is_left().await;
                let reason = connection.close_reason(Instant::now(), 0);
                assert!(cut == replies.len() || reason == Some(CloseReason::Closed), "{reason:?}");
            });
            thread.join().unwrap();
        }
    }
}

#[test]
fn a_reply_too_many_is_noticed() {
    for more in [&b""[..], b"+PONG\r\n", b"$7\r\nfor", b"\r", b">1\r\n+x\r\n"] {
        let (over, is_over) = mpsc::channel::<()>();
        let (url, thread) = peer(move |mut peer| {
            let mut bytes = [0; 1024];
            let _: usize = peer.read(&mut bytes).unwrap();
            peer.write_all(&[b"+PONG\r\n", more].concat()).unwrap();
            is_over.recv()
        });
        single().block_on(async {
            let mut connection = open_at(&url).await.unwrap();
            assert_eq!(connection.ping(soon()).await.is_ok(), more.is_empty(), "{more:?}");
            let expected = (!more.is_empty()).then_some(CloseReason::Protocol);
            assert_eq!(connection.close_reason(Instant::now(), 0), expected, "{more:?}");
        });
        drop(over);
        let _: Result<(), _> = thread.join().unwrap();
    }
}

#[test]
fn an_unexpected_reply_in_the_socket_is_seen_before_a_message_is_sent() {
    let runtime = single();
    let (send, sends) = mpsc::channel::<()>();
    let (url, thread) = peer(move |mut peer| {
        sends.recv().unwrap();
        peer.write_all(b">1\r\n+push\r\n+PONG\r\n").unwrap();
        let mut come = Vec::new();
        let _: std::io::Result<usize> = peer.read_to_end(&mut come);
        come
    });
    let mut connection = runtime.block_on(open_at(&url)).unwrap();
    connection.mark_taken();
    send.send(()).unwrap();
    let wire = connection.wire_mut();
    use crate::connection::wire::Wire;
    eventually(SOON, "it has arrived", || wire.check_socket(false).is_err());
    // The bytes begin a push, which is allowed; the task sees what follows it, and sends nothing.
    wire.check_socket(true).unwrap();
    let exchanged = runtime.block_on(async {
        wire.send(b"*1\r\n$4\r\nPING\r\n", 1, soon()).await.unwrap();
        wire.fill(soon()).await
    });
    assert_eq!(exchanged.unwrap_err().kind(), ConnectionErrorKind::Unexpected);
    assert_eq!(wire.unsent(), Some(0));
    drop(connection);
    runtime.block_on(no_task_is_left());
    assert_eq!(thread.join().unwrap(), b"");
}

#[test]
fn pushes_are_skipped_wherever_they_arrive() {
    let server = Server::start();
    let url = format!("{}?protocol=resp3", server.url());
    let runtime = single();
    let mut other = server.connect().unwrap();
    let mut change = move || redis::cmd("INCR").arg("seen").query::<i64>(&mut other).unwrap();
    let mut connection = runtime.block_on(open_at(&url)).unwrap();
    let track = pipe(&[&["CLIENT", "TRACKING", "ON"], &["GET", "seen"]]);
    let replies = runtime.block_on(connection.ask_all(&track, 2, soon())).unwrap();
    assert_eq!(replies, [Value::Okay, Value::Nil]);
    for nth in 1..20 {
        // The push arrives while no task is polled, or while one is.
        change();
        if nth % 2 == 0 {
            runtime.block_on(async {
                for _ in 0..10 {
                    tokio::task::yield_now().await;
                }
            });
        }
        connection.mark_taken();
        connection.check_socket().unwrap();
        let read = pipe(&[&["GET", "seen"]]);
        let replies = runtime.block_on(connection.ask_all(&read, 1, soon())).unwrap();
        assert_eq!(replies, [Value::BulkString(nth.to_string().into_bytes())]);
        assert_eq!(connection.close_reason(Instant::now(), 0), None);
    }
}

#[test]
fn a_dropped_call_leaves_a_connection_in_step() {
    let server = Server::start();
    let runtime = single();
    let mut connection = runtime.block_on(open(&server));
    for nth in 0..50_u32 {
        let bytes = pipe(&[&["INCR", "a"], &["GET", "a"]]);
        let dropped = async {
            let mut call = Box::pin(connection.ask_all(&bytes, 2, soon()));
            std::future::poll_fn(|context| {
                assert!(call.as_mut().poll(context).is_pending());
                Poll::Ready(())
            })
            .await;
        };
        runtime.block_on(dropped);
        assert!(!connection.state().is_clean());
        for _ in 0..nth % 5 {
            runtime.block_on(tokio::task::yield_now());
        }
        let replies = runtime.block_on(connection.ask_all(&pipe(&[&["GET", "a"]]), 1, soon()));
        assert_eq!(replies.unwrap(), [Value::BulkString((nth + 1).to_string().into_bytes())]);
        assert_eq!(connection.close_reason(Instant::now(), 0), None);
    }
    // A transaction's replies are left to the cleanup.
    let dropped = async {
        let (expected, mut take) = ([(Expect::Multi, 1)], |_, _| {});
        let mut call = Box::pin(connection.exchange(MULTI, &expected, soon(), &mut take));
        std::future::poll_fn(|context| Poll::Ready(call.as_mut().poll(context).is_ready())).await
    };
    assert!(!runtime.block_on(dropped));
    runtime.block_on(connection.receive_left(soon())).unwrap();
    assert!(connection.state().is_in_multi());
}

#[test]
fn an_array_whose_end_is_not_read_is_reported_with_its_length() {
    for cut in [&b"*3\r\n:1\r\n?\r\n"[..], b"*3\r\n$99999999999\r\n"] {
        let (url, thread) = peer(move |mut peer| {
            let mut bytes = [0; 1024];
            let _: usize = peer.read(&mut bytes).unwrap();
            peer.write_all(&[b"+OK\r\n", cut].concat()).unwrap();
            let _: std::io::Result<usize> = peer.read(&mut bytes);
        });
        single().block_on(async {
            let mut connection = open_at(&url).await.unwrap();
            let expected = [(Expect::Multi, 1), (Expect::Exec, 1)];
            let mut taken = Vec::new();
            let mut take = |_, reply| taken.push(reply);
            let bytes = pipe(&[&["MULTI"], &["EXEC"]]);
            let ended = connection.exchange(&bytes, &expected, soon(), &mut take).await;
            let Err(Interruption { left: None, cause }) = ended else { panic!("{cut:?}") };
            assert!(
                matches!(
                    cause.kind(),
                    ConnectionErrorKind::Protocol | ConnectionErrorKind::TooLarge
                ),
                "{cause}"
            );
            assert_eq!(taken, [Reply::Value(Value::Okay), Reply::Truncated(3)]);
        });
        thread.join().unwrap();
    }
}

/// A peer that says something at once, and closes or waits for a close.
fn speaks_first(says: &'static [u8], closes: bool) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        peer.write_all(says).unwrap();
        if closes {
            let _: std::io::Result<()> = peer.shutdown(Shutdown::Write);
        }
        let mut come = Vec::new();
        let _: std::io::Result<usize> = peer.read_to_end(&mut come);
    });
    (url, thread)
}

#[test]
fn a_connection_that_is_rejected_names_the_reason() {
    let cases: [(&[u8], bool, ConnectionErrorKind, &str); 5] = [
        (
            b"-ERR max number of clients reached\r\n",
            true,
            ConnectionErrorKind::Refused,
            "max number",
        ),
        (b"-DENIED protected mode\r\n", true, ConnectionErrorKind::Refused, "DENIED"),
        (b"", true, ConnectionErrorKind::Closed, "rediss://"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", true, ConnectionErrorKind::Protocol, "HTTP"),
        (b"SSH-2.0-OpenSSH\r\n", false, ConnectionErrorKind::Protocol, "SSH"),
    ];
    for (says, closes, kind, text) in cases {
        let (url, thread) = speaks_first(says, closes);
        let error = single().block_on(open_at(&url)).map(drop).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(text), "{error}");
        thread.join().unwrap();
    }
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = single().block_on(open_at(&format!("redis://{closed}"))).map(drop).unwrap_err();
    assert_eq!(error.kind(), ConnectionErrorKind::Closed);
    let missing = tempfile::tempdir().unwrap().path().join("s");
    let url = format!("redis+unix://{}", missing.display());
    let error = single().block_on(open_at(&url)).map(drop).unwrap_err();
    assert_eq!(error.kind(), ConnectionErrorKind::Closed);
}

#[test]
fn an_opening_that_is_dropped_closes_its_connection() {
    let server = Server::start();
    single().block_on(async {
        for polls in 0..20 {
            let mut opening = Box::pin(open(&server));
            for _ in 0..polls {
                let mut ended = None;
                std::future::poll_fn(|context| {
                    if let Poll::Ready(connection) = opening.as_mut().poll(context) {
                        ended = Some(connection);
                    }
                    Poll::Ready(())
                })
                .await;
                if ended.is_some() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            drop(opening);
            no_task_is_left().await;
        }
    });
    eventually(SOON, "the server sees the end", || server.clients().is_empty());
}

/// Blocks until its sender is dropped.
struct SilentVault(std::sync::Mutex<mpsc::Receiver<()>>);

impl CredentialsProvider for SilentVault {
    fn credentials(&self) -> Result<Credentials, Box<dyn std::error::Error + Send + Sync>> {
        let _: Result<(), _> = crate::sync::lock(&self.0).recv();
        Err("closed".into())
    }

    fn version(&self) -> u64 {
        0
    }
}

#[test]
fn a_runtime_with_a_silent_name_server_or_vault_ends_at_once() {
    let (release, held) = mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    let resolver = Resolver::new(move |_| {
        let _: Result<(), _> = crate::sync::lock(&held).recv();
        Err(std::io::Error::other("no such host"))
    });
    let (release_vault, held) = mpsc::channel::<()>();
    let vault = SilentVault(std::sync::Mutex::new(held));
    let of_names = Settings { resolver, connect_timeout: LIMIT, ..Settings::default() };
    let of_vault = Settings { credentials: Some(Provider::new(vault)), ..Settings::default() };
    let kinds = [ConnectionErrorKind::TimedOut, ConnectionErrorKind::Credentials];
    for (settings, kind) in [of_names, of_vault].into_iter().zip(kinds) {
        let endpoint = Endpoint::new(parse("redis://silent.test").unwrap(), &settings).unwrap();
        let begun = Instant::now();
        let runtime = single();
        // A caller with a deadline waits no longer than that.
        let deadline = Some(Instant::now() + LIMIT);
        let options = OpenOptions { deadline, ..options() };
        let error = runtime.block_on(Tasks::open(&endpoint, &settings, options)).map(drop);
        assert_eq!(error.unwrap_err().kind(), kind);
        let (sender, result) = mpsc::channel();
        let then = move |opened: Result<Connection<TaskWire>, _>| {
            sender.send(opened.map(drop).unwrap_err()).unwrap();
        };
        let (config, options) = (Arc::new(settings), self::options());
        spawn_connection(runtime.handle(), endpoint, config, options, then);
        runtime.block_on(tokio::task::yield_now());
        drop(runtime);
        let error: ConnectionError = result.try_recv().unwrap();
        assert_eq!(error.kind(), ConnectionErrorKind::Closed);
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    }
    drop((release, release_vault));
}

/// Runs messages in the connection's own task, as a lane does.
async fn pings(mut connection: Connection<TaskWire>, done: mpsc::Sender<u32>) {
    for nth in 0..100 {
        connection.ping(soon()).await.unwrap().unwrap();
        done.send(nth).unwrap();
    }
}

#[test]
fn a_connections_own_task_runs_a_future_beside_its_socket() {
    let server = Server::start();
    single().block_on(async {
        let connection = open(&server).await;
        let task: ConnectionTask = connection.wire().task().clone();
        let (done, is_done) = mpsc::channel();
        assert!(task.adopt(Box::new(pings(connection, done))).is_ok());
        no_task_is_left().await;
        assert_eq!(is_done.into_iter().count(), 100);
        assert!(task.is_closed() && task.adopt(Box::new(async {})).is_err());
        // The future outlives the socket.
        let connection = open(&server).await;
        let task = connection.wire().task().clone();
        let (go_on, may_go_on) = tokio::sync::oneshot::channel();
        let (done, is_done) = mpsc::channel();
        let waits = async move {
            let _: Result<(), _> = may_go_on.await;
            done.send(()).unwrap();
        };
        assert!(task.adopt(Box::new(waits)).is_ok());
        drop(connection);
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        go_on.send(()).unwrap();
        no_task_is_left().await;
        is_done.try_recv().unwrap();
    });
    eventually(SOON, "the server sees the end", || server.clients().is_empty());
}
