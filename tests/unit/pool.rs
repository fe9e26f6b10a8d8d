//! A pool and a connection when the server or the caller fails.
//!
//! Guarantee: pools

#[cfg(feature = "tokio")]
mod task_wire;
#[cfg(feature = "tls-rustls")]
pub(crate) mod tls;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, Location, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use scheduled_thread_pool::ScheduledThreadPool;

use crate::connection::connect::Connected;
use crate::connection::connection::{Connection, Interruption};
use crate::connection::deadline::Deadline;
use crate::connection::endpoint::Endpoint;
use crate::connection::polling::Polling;
use crate::connection::transport::Transport;
use crate::connection::url::one as parse;
use crate::error::any::Error;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::error::in_doubt::CommitToken;
use crate::pool::batch_request::BatchRequest;
use crate::pool::batch_response::BatchResponse;
use crate::pool::checkout::{Checkout, Permit, ThreadKeyQueue};
use crate::pool::config::PoolConfig;
use crate::pool::core::ThreadRequest;
use crate::pool::early_watch::WatchOffer;
use crate::pool::group::{self, Group};
use crate::pool::group_prepare;
use crate::pool::key_turn::{KeyTurn, Passed, TurnQueue};
use crate::pool::line::Line;
use crate::pool::pool::Pool;
use crate::pool::router::Router;
use crate::pool::router::slot_map_refresh::SlotMapCache;
use crate::pool::scope_origin::ScopeOrigin;
use crate::pool::scopes::PinnedConnection;
use crate::pool::semaphore::Acquired;
use crate::pool::server_pool::{BatchCheckout, PinnedLine, ServerPool};
use crate::process::sockets::OwnSocket;
use crate::protocol::batch::RequestKind;
use crate::protocol::cluster::route::Route;
use crate::protocol::connection_state::CloseReason;
use crate::protocol::connection_state::Expect;
use crate::protocol::handshake::Purpose;
use crate::protocol::queue::CommandQueue;
use crate::protocol::resp::encode::MULTI;
use crate::settings::settings::Settings;
use crate::sync::now::now;

pub(in crate::pool) const SOON: Duration = Duration::from_secs(20);

/// A `redis-server` on a unix socket. The harness of the integration tests is not in the package, and
/// these tests are.
pub(crate) struct Server {
    child: Child,
    folder: tempfile::TempDir,
    #[cfg_attr(
        not(feature = "tokio"),
        expect(dead_code, reason = "tests of tasks start it again")
    )]
    options: Vec<String>,
}

fn spawn(folder: &tempfile::TempDir, options: &Vec<String>) -> Child {
    let program = std::env::var_os("REDIS_SERVER").unwrap_or_else(|| "redis-server".into());
    Command::new(program)
        .args(options)
        .args(["--unixsocket", "s", "--save", ""])
        .current_dir(folder.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::start_with(&["--port", "0"])
    }

    pub(in crate::pool) fn start_with(options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let child = spawn(&folder, &options);
        let server = Self { child, folder, options };
        eventually(SOON, "the server is up", || server.connect().is_ok());
        server
    }

    pub(in crate::pool) fn stop(&mut self) {
        let _: Result<(), _> = self.child.kill();
        let _: Result<_, _> = self.child.wait();
    }

    #[cfg(feature = "tokio")]
    pub(in crate::pool) fn start_again(&mut self) {
        self.child = spawn(&self.folder, &self.options);
        eventually(SOON, "the server is up again", || self.connect().is_ok());
    }

    pub(in crate::pool) fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    pub(crate) fn url(&self) -> String {
        format!("redis+unix://{}", self.socket().display())
    }

    pub(in crate::pool) fn connect(&self) -> redis::RedisResult<redis::Connection> {
        redis::Client::open(self.url())?.get_connection()
    }

    /// The flags of each client but the asking one.
    pub(in crate::pool) fn clients(&self) -> Vec<String> {
        let mut connection = self.connect().unwrap();
        let mut pipe = redis::pipe();
        pipe.cmd("CLIENT").arg("ID").cmd("CLIENT").arg("LIST");
        let (own, list): (i64, String) = pipe.query(&mut connection).unwrap();
        let field = |line: &str, name: &str| {
            line.split(' ').find_map(|word| word.strip_prefix(name).map(str::to_owned)).unwrap()
        };
        let others = list.lines().filter(|line| field(line, "id=") != own.to_string());
        others.map(|line| field(line, "flags=")).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

#[track_caller]
pub(in crate::pool) fn eventually(limit: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn pool_of_one(server: &Server, max_pin_time: Duration) -> Pool {
    let (config, endpoint) = config_of_one(server, max_pin_time);
    Pool::new(config, endpoint)
}

/// The configuration of a pool with one connection to the server.
pub(in crate::pool) fn config_of_one(
    server: &Server,
    max_pin_time: Duration,
) -> (PoolConfig, Endpoint) {
    config_at(server.url(), max_pin_time)
}

/// The configuration of a pool with one connection to this address.
pub(in crate::pool) fn config_at(url: String, max_pin_time: Duration) -> (PoolConfig, Endpoint) {
    let settings =
        Settings { max_size: 1, checkout_timeout: SOON, max_pin_time, ..Settings::default() };
    let endpoint = Endpoint::new(parse(url).unwrap(), &settings).unwrap();
    let config = PoolConfig {
        name: "test",
        purpose: Purpose::Transactional,
        settings: Arc::new(settings),
        threads: Arc::new(ScheduledThreadPool::new(2)),
        counters: Arc::default(),
        logging: Arc::default(),
        fail_fast: false,
    };
    (config, endpoint)
}

fn pin(pool: &Pool) -> PinnedConnection<Checkout> {
    let origin = ScopeOrigin { name: None, place: Location::caller(), is_closure: false };
    now(pool.pin(origin, Instant::now() + SOON, false, Arc::new(()))).unwrap()
}

/// A slot may have no master for long.
#[test]
fn a_connection_that_came_with_a_turn_is_returned_before_the_slot_map_is_awaited() {
    let server = Server::start();
    let (config, endpoint) = config_of_one(&server, SOON);
    let pool = Pool::new(config.clone(), endpoint);
    let connection = now(pool.checkout(Instant::now() + SOON)).unwrap();
    let queue = Arc::new(<ThreadKeyQueue as TurnQueue>::single());
    let passed = Some(Passed::now(connection));
    let turn = Arc::new(KeyTurn::new([queue].into(), b"", &[(0, ())], passed));
    let (watch, reads) = (&b""[..], (&b""[..], 0));
    let offer = WatchOffer { watch, travels: false, reads, needs: None, turn: Some(&turn) };
    let nodes = vec![parse("redis://127.0.0.1:1".to_owned()).unwrap()];
    let slot_map = SlotMapCache::new(nodes, Arc::clone(&config.settings)).unwrap();
    let router = Router::<Pool>::cluster(config, Arc::new(slot_map));
    let origin = ScopeOrigin { name: None, place: Location::caller(), is_closure: false };
    let by = Instant::now() + Duration::from_millis(100);
    assert!(now(router.pin(&Route::to(Some(1)), &origin, by, Some(offer))).is_err());
    assert_eq!(pool.in_use(), 0);
}

#[test]
fn a_scope_is_reclaimed_even_if_an_earlier_call_panicked() {
    let server = Server::start();
    let pool = pool_of_one(&server, Duration::from_millis(500));
    let panicking = pin(&pool);
    // A call runs code that is not ours: redis-rs's, and a subscriber's for what it logs.
    let call = || {
        let _call = panicking.call::<Error>().unwrap();
        resume_unwind(Box::new("below this crate"))
    };
    let unwound: Result<(), _> = catch_unwind(AssertUnwindSafe(call));
    assert!(unwound.is_err());
    drop(panicking);
    assert_eq!(pool.in_use(), 0);
    std::mem::forget(pin(&pool));
    eventually(SOON, "the forgotten scope was taken back", || pool.in_use() == 0);
    drop(pin(&pool));
}

#[test]
fn a_connection_that_was_left_in_the_middle_of_a_call_is_not_handed_on() {
    let server = Server::start();
    let pool = pool_of_one(&server, 2 * SOON);
    let in_multi = || server.clients().iter().any(|flags| flags.contains('x'));
    let panicking = pin(&pool);
    let call = || {
        let mut call = panicking.call::<Error>().unwrap();
        let deadline = call.response_deadline();
        let connection = call.current().unwrap();
        let expected = [(Expect::Multi, 1)];
        let sent = now(connection.exchange(MULTI, &expected, deadline, &mut |_, _| {}));
        assert!(sent.is_ok());
        assert!(in_multi());
        resume_unwind(Box::new("below this crate"))
    };
    let unwound: Result<(), _> = catch_unwind(AssertUnwindSafe(call));
    assert!(unwound.is_err());
    drop(panicking);
    eventually(SOON, "the server has no client in MULTI", || !in_multi());
    let counts = pool.config.counters.counts();
    assert_eq!(counts.replaced, [(CloseReason::LeftDirty, 1)]);
}

#[test]
fn a_call_is_ended_by_the_socket_in_its_scopes_entry() {
    let server = Server::start();
    let pool = pool_of_one(&server, 2 * SOON);
    let scope = pin(&pool);
    let mut call = scope.call::<Error>().unwrap();
    let waits = b"*3\r\n$5\r\nBLPOP\r\n$1\r\na\r\n$1\r\n0\r\n";
    std::thread::scope(|threads| {
        let waiting = threads.spawn(move || {
            let deadline = Deadline::after(SOON);
            let expected = [(Expect::Plain, 1)];
            let connection = call.current().unwrap();
            let ended = now(connection.exchange(waits, &expected, deadline, &mut |_, _| {}));
            ended.unwrap_err().cause.kind()
        });
        eventually(SOON, "the call waits on the server", || {
            server.clients().iter().any(|flags| flags.contains('b'))
        });
        assert_eq!(pool.scopes.list().len(), 1, "the scope stays in the report");
        let begun = Instant::now();
        assert_eq!(pool.scopes.reclaim_all(), 1);
        assert_ne!(waiting.join().unwrap(), ConnectionErrorKind::TimedOut);
        assert!(begun.elapsed() < SOON / 2, "{:?}", begun.elapsed());
    });
    assert_eq!((pool.in_use(), pool.scopes.list().len()), (0, 0), "the mark was obeyed");
    assert!(matches!(scope.call::<Error>(), Err(Error::PinExpired(_))));
}

#[test]
fn a_second_call_fails_while_the_first_has_the_connection() {
    let server = Server::start();
    let pool = pool_of_one(&server, 2 * SOON);
    let scope = pin(&pool);
    let first = scope.call::<Error>().unwrap();
    let Err(second) = scope.call::<Error>() else { panic!("two calls have one connection") };
    assert!(format!("{second:#}").contains("another call of the scope"), "{second:#}");
    drop(first);
    let last = scope.call::<Error>().unwrap();
    drop(scope);
    assert_eq!((pool.in_use(), pool.scopes.list().len()), (1, 1), "the call is under way");
    drop(last);
    assert_eq!((pool.in_use(), pool.scopes.list().len()), (0, 0), "the call's end is the scope's");
}

/// A connection, and its other side.
fn pair() -> (Connection, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    let connected = Connected::Socket(Arc::new(OwnSocket::new(socket)));
    (Connection::new(Transport::new(connected, Polling::default()), None, 0), peer)
}

/// Sends bytes that cannot all be sent. Returns the number that may have been sent, and the error.
pub(crate) fn send_part(
    connection: &mut Connection,
    bytes: &[u8],
    limit: Duration,
) -> (usize, ConnectionError) {
    let expected = [(Expect::Plain, 1)];
    let sent = now(connection.exchange(bytes, &expected, Deadline::after(limit), &mut |_, _| {}));
    let Err(Interruption { left: Some(left), cause }) = sent else { panic!("all bytes were sent") };
    (left, cause)
}

#[test]
fn a_surplus_reply_is_noticed_before_the_next_checkout() {
    for more in [&b""[..], b"+PONG\r\n", b"$7\r\nfor", b"\r"] {
        let (mut connection, mut peer) = pair();
        peer.write_all(&[b"+PONG\r\n", more].concat()).unwrap();
        // Which of the two is the call's own is not known.
        let replied = now(connection.ping(Deadline::after(SOON)));
        assert_eq!(replied.is_ok(), more.is_empty(), "{more:?}");
        let expected = (!more.is_empty()).then_some(CloseReason::Protocol);
        assert_eq!(connection.close_reason(Instant::now(), 0), expected, "{more:?}");
    }
}

#[test]
fn bytes_that_stay_behind_are_counted_exactly() {
    let (mut connection, mut peer) = pair();
    let bytes = vec![b'x'; 64 << 20];
    let begun = Instant::now();
    let limit = Duration::from_millis(400);
    let (left, error) = send_part(&mut connection, &bytes, limit);
    assert_eq!(error.kind(), ConnectionErrorKind::TimedOut);
    assert!(begun.elapsed() < 20 * limit, "{:?}", begun.elapsed());
    drop(connection);
    let mut came = Vec::new();
    peer.read_to_end(&mut came).unwrap();
    assert_eq!(came.len(), left);
}

#[test]
fn a_reply_that_comes_in_drips_ends_at_the_deadline() {
    let (mut connection, mut peer) = pair();
    let limit = Duration::from_millis(400);
    let (over, is_over) = std::sync::mpsc::channel::<()>();
    let drips = std::thread::spawn(move || {
        peer.write_all(b"$100000\r\n").unwrap();
        // Each wait for a byte is shorter than the limit; all of them together are not.
        while is_over.recv_timeout(limit / 20) == Err(RecvTimeoutError::Timeout) {
            if peer.write_all(b"x").is_err() {
                break;
            }
        }
    });
    let begun = Instant::now();
    now(connection.send(b"GET", &[(Expect::Plain, 1)], Deadline::after(SOON))).unwrap();
    let error = now(connection.receive(Deadline::after(limit))).unwrap_err();
    assert_eq!(error.kind(), ConnectionErrorKind::TimedOut);
    assert!(begun.elapsed() < 20 * limit, "{:?}", begun.elapsed());
    assert_eq!(connection.close_reason(Instant::now(), 0), Some(CloseReason::TimedOut));
    drop(over);
    drips.join().unwrap();
}

#[test]
fn a_connection_that_is_added_after_the_pool_was_drained_is_closed_too() {
    let server = Server::start();
    let pool = pool_of_one(&server, 2 * SOON);
    let (arrived, has_arrived) = std::sync::mpsc::channel();
    let (go_on, may_go_on) = std::sync::mpsc::channel::<()>();
    let before_listing = move || {
        arrived.send(()).unwrap();
        let _: Result<(), _> = may_go_on.recv_timeout(SOON);
    };
    *crate::sync::lock(&pool.shared().before_listing) = Some(Box::new(before_listing));
    // The caller has given up before the connection is there.
    now(pool.checkout(Instant::now())).map(drop).unwrap_err();
    has_arrived.recv_timeout(SOON).unwrap();
    // Open, and not yet where the pool looks for it.
    assert_eq!((server.clients().len(), pool.idle.size()), (1, 0));
    pool.close();
    assert_eq!(pool.drain(Instant::now()), 0);
    drop(go_on);
    eventually(SOON, "it is closed, though it was listed later", || pool.shared().alive() == 0);
    eventually(SOON, "the server sees it", || server.clients().is_empty());
}

/// The caller that leads the group is stopped between the last reply and the outcomes.
#[test]
fn a_block_whose_leader_is_late_has_the_token_of_its_group_whose_number_stays_in_the_register() {
    a_late_leader([None; 2]);
}

/// Behind the group, the register of the next block's slot is written.
#[test]
fn the_number_of_a_late_group_stays_in_the_register_also_if_a_block_of_another_slot_follows() {
    a_late_leader([Some(1), Some(2)]);
}

/// The slots of the group, and of a further block that waits.
fn a_late_leader([slot, next]: [Option<u16>; 2]) {
    let server = Server::start();
    let pool = pool_of_one(&server, 2 * SOON);
    let request = |key: &str, slot| {
        let mut queue = CommandQueue::new(1, pool.settings().limits(), Vec::new());
        queue.push_cmd(0, redis::cmd("INCR").arg(key));
        let block = queue.block();
        let kind = RequestKind::Block { commands: 1 };
        BatchRequest { exactly_once: true, slot, ..BatchRequest::new(block, kind) }
    };
    let (held, short) = (now(pool.checkout(Instant::now() + SOON)).unwrap(), SOON / 20);
    std::thread::scope(|threads| {
        let waiting = |count| {
            eventually(SOON, "a caller waits", || pool.semaphore.waiting() == count);
        };
        let leads = threads.spawn(|| {
            let by = Instant::now() + SOON;
            let request = || ThreadRequest::new(request("leads", slot), ());
            pool.semaphore.acquire_batched(request, by, SOON, |_| Ok::<_, ()>(())).unwrap()
        });
        waiting(1);
        let member = threads.spawn(|| {
            let by = Instant::now() + short;
            now(pool.checkout_batched(by, short, &|| request("member", slot)))
        });
        waiting(2);
        let further = next.map(|_| {
            let further = threads.spawn(|| {
                // Nothing but its deadline wakes it here.
                let by = Instant::now() + 4 * short;
                now(pool.checkout_batched(by, 4 * short, &|| request("further", next)))
            });
            waiting(3);
            further
        });
        drop(held);
        let Acquired::Leads(number, place) = leads.join().unwrap() else { panic!("no lead") };
        let (permit, begun) = (Permit::new(Arc::clone(&pool), number), Instant::now());
        let mut line = Checkout::new(permit, None, begun, begun + SOON).unwrap();
        let mut jobs = pool.semaphore.take_group(number, &place);
        let deadline = Deadline::after(2 * SOON);
        let arm = |line: &mut Checkout, slot| {
            let refused = now(group_prepare::arm(line, group::tag(slot), deadline)).unwrap();
            assert!(refused.is_none());
        };
        arm(&mut line, slot);
        let connection = line.current().unwrap();
        let register = connection.known_marker().unwrap().register().to_owned();
        let group = Group::take(&mut jobs, connection, &pool, true, &pool.shapes, |_, _| ());
        let mut group = group.unwrap();
        assert!(now(group.exchange(connection, true, deadline)).is_none());
        let response = member.join().unwrap().map_err(drop);
        let Ok(BatchCheckout::Response(BatchResponse::InDoubt(doubt))) = response else {
            panic!("no token")
        };
        let CommitToken { register: named, number, .. } = &doubt.token.token;
        let written =
            || redis::cmd("GET").arg(&register).query::<u64>(&mut server.connect().unwrap());
        assert_eq!((named, written().unwrap()), (&register, *number));
        assert!(group.settle(&mut line, None, &pool.shapes).is_empty());
        if let Some(further) = further {
            arm(&mut line, next);
            let connection = line.current().unwrap();
            let group = Group::take(&mut jobs, connection, &pool, true, &pool.shapes, |_, _| ());
            let mut group = group.unwrap();
            assert!(now(group.exchange(connection, true, deadline)).is_none());
            assert!(group.settle(&mut line, None, &pool.shapes).is_empty());
            let response = further.join().unwrap().map_err(drop);
            assert!(matches!(response, Ok(BatchCheckout::Response(BatchResponse::Block(_)))));
        }
        // The next group of the connection.
        arm(&mut line, slot);
        assert_ne!(line.current().unwrap().known_marker().unwrap().register(), register);
        assert_eq!(written().unwrap(), *number);
        assert!(matches!(place.job.response(), Some((Ok(BatchResponse::Block(_)), _))));
    });
    assert_eq!(pool.in_use(), 0);
}
