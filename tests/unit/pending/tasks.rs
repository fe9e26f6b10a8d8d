//! The conversations on the pool of tasks. Each is dropped after each of its polls, while its connection is cut after
//! each byte. The next caller then finds a clean connection or a new one, and no transaction is applied in part.
//!
//! Guarantee: tasks

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, JoinHandle, Thread};
use std::time::Instant;

use redis::Value;
use tokio::runtime::Runtime;

use crate::connection::deadline::Deadline;
use crate::pool::line::Line;
use crate::pool::pending::conversations::{self, Found, READ_BOTH, on_server, soon};
use crate::pool::pending::stub::StubPool;
use crate::pool::router::Router;
use crate::pool::server_pool::ServerPool;
use crate::pool::tasks::pool::TaskPool;
use crate::pool::tests::{SOON, Server, config_at, eventually};
use crate::protocol::cluster::route::Route;
use crate::sync::lock;

/// A direction of the relay, seen from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Sent,
    Received,
}

/// Number of bytes that passed, and number of those that may still pass.
#[derive(Default)]
struct Passage {
    passed: AtomicUsize,
    left: AtomicI64,
}

/// A socket before the server, which cuts a connection after any byte.
struct Relay {
    folder: tempfile::TempDir,
    passages: Arc<[Passage; 2]>,
    /// Those whose connections may still be open.
    sockets: Arc<Mutex<Vec<Weak<UnixStream>>>>,
    over: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Relay {
    fn to(server: &Server) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("relay");
        let listener = UnixListener::bind(&path).unwrap();
        let passages = Arc::new([Passage::default(), Passage::default()]);
        let (sockets, over) = (Arc::<Mutex<Vec<_>>>::default(), Arc::default());
        let relay = (Arc::clone(&passages), Arc::clone(&sockets), Arc::clone(&over));
        let target = server.socket();
        let accepting = thread::spawn(move || accept(&listener, &target, &relay));
        let relay = Self { folder, passages, sockets, over, accepting: Some(accepting) };
        relay.spare();
        relay
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("relay")
    }

    fn url(&self) -> String {
        format!("redis+unix://{}", self.path().display())
    }

    /// The next connection that passes this number of bytes in this direction is cut, once.
    fn cut(&self, way: Way, after: usize) {
        self.passages[way as usize].left.store(after as i64, Ordering::SeqCst);
    }

    /// No connection is cut.
    fn spare(&self) {
        self.passages.iter().for_each(|passage| passage.left.store(i64::MAX, Ordering::SeqCst));
    }

    fn passed(&self, way: Way) -> usize {
        self.passages[way as usize].passed.load(Ordering::SeqCst)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        drop(UnixStream::connect(self.path()));
        for socket in lock(&self.sockets).drain(..).filter_map(|socket| socket.upgrade()) {
            let _: std::io::Result<()> = socket.shutdown(Shutdown::Both);
        }
        let _: thread::Result<()> = self.accepting.take().unwrap().join();
    }
}

type Shared = (Arc<[Passage; 2]>, Arc<Mutex<Vec<Weak<UnixStream>>>>, Arc<AtomicBool>);

fn accept(listener: &UnixListener, target: &Path, (passages, sockets, over): &Shared) {
    for client in listener.incoming() {
        if over.load(Ordering::SeqCst) {
            return;
        }
        let sides = [client, UnixStream::connect(target)].map(|side| Arc::new(side.unwrap()));
        let mut known = lock(sockets);
        known.retain(|socket| socket.strong_count() > 0);
        known.extend(sides.each_ref().map(Arc::downgrade));
        let [client, server] = &sides;
        for (way, from, to) in [(Way::Sent, client, server), (Way::Received, server, client)] {
            let (from, to) = (Arc::clone(from), Arc::clone(to));
            let passages = Arc::clone(passages);
            thread::spawn(move || pass(&from, &to, &passages[way as usize]));
        }
    }
}

fn pass(mut from: &UnixStream, mut to: &UnixStream, passage: &Passage) {
    let mut bytes = [0; 64 * 1024];
    loop {
        let came = from.read(&mut bytes).unwrap_or(0);
        let left = passage.left.load(Ordering::SeqCst);
        let may_pass = came.min(usize::try_from(left).unwrap_or(0));
        let is_cut = came == 0 || may_pass < came || may_pass as i64 == left;
        if left != i64::MAX {
            // The cut happens once.
            let next = if is_cut && came > 0 { i64::MAX } else { left - may_pass as i64 };
            passage.left.store(next, Ordering::SeqCst);
        }
        passage.passed.fetch_add(may_pass, Ordering::SeqCst);
        if to.write_all(&bytes[..may_pass]).is_err() || is_cut {
            let _: std::io::Result<()> = from.shutdown(Shutdown::Both);
            let _: std::io::Result<()> = to.shutdown(Shutdown::Both);
            return;
        }
    }
}

struct Unpark(Thread, AtomicBool);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.1.store(true, Ordering::Release);
        self.0.unpark();
    }
}

/// Polls the future at most `most` times, each time that it was woken, then drops it outside of the runtime. `None`: it
/// was still pending. Also returns the number of polls.
#[track_caller]
fn poll_at_most<T>(
    runtime: &Runtime,
    most: usize,
    future: impl Future<Output = T>,
) -> (Option<T>, usize) {
    let unpark = Arc::new(Unpark(thread::current(), AtomicBool::new(true)));
    let waker = Waker::from(Arc::clone(&unpark));
    let mut future = pin!(future);
    for polls in 0..most {
        let begun = Instant::now();
        while !unpark.1.swap(false, Ordering::Acquire) {
            assert!(begun.elapsed() < SOON, "not woken after {polls} polls");
            thread::park_timeout(SOON);
        }
        let _runtime = runtime.enter();
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return (Some(output), polls + 1);
        }
    }
    (None, most)
}

/// A runtime, a server, and a relay between both.
struct Stage {
    runtime: Runtime,
    server: Server,
    relay: Relay,
}

impl Stage {
    fn new() -> Self {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().unwrap();
        let server = Server::start();
        let relay = Relay::to(&server);
        Self { runtime, server, relay }
    }

    fn finish<T>(&self, future: impl Future<Output = T>) -> T {
        poll_at_most(&self.runtime, usize::MAX, future).0.unwrap()
    }

    /// A pool of one connection, which is open and idle.
    fn router<P: ServerPool>(&self) -> Router<P> {
        let (config, endpoint) = config_at(self.relay.url(), 2 * SOON);
        let router = Router::<P>::one(config, endpoint);
        drop(self.finish(router.checkout(&Route::default(), soon())).unwrap());
        self.settle(&router);
        router
    }

    fn settle<P: ServerPool>(&self, router: &Router<P>) {
        eventually(SOON, "no connection is in use", || router.status().in_use == 0);
    }

    /// Checks that the next caller has replies of its own, and no watch of another one. Its connection may fail only if
    /// it `may_be_cut`.
    fn check_next_caller<P: ServerPool>(&self, router: &Router<P>, may_be_cut: bool, what: &str) {
        on_server(&self.server, &["SET seen touched"]);
        let mut pipe = redis::pipe();
        pipe.cmd("ECHO").arg("the first reply").cmd("MULTI").cmd("SET").arg("probe").arg(1);
        let bytes = pipe.cmd("EXEC").get_packed_pipeline();
        let asked = self.finish(async {
            let mut line = router.checkout(&Route::default(), soon()).await.unwrap();
            loop {
                if line.current().is_none() {
                    line.connect(soon()).await.unwrap();
                }
                let connection = line.current().unwrap();
                match connection.ask_all(&bytes, 4, Deadline::after(SOON)).await {
                    Ok(replies) => return replies,
                    Err(error) => assert!(may_be_cut, "{what}: {error:?}"),
                }
                line.close();
            }
        });
        assert_eq!(asked[0], Value::BulkString(b"the first reply".into()), "{what}");
        assert_eq!(asked[3], Value::Array(vec![Value::Okay]), "{what}");
    }
}

/// The numbers of transactions that a conversation returned as applied and as in doubt.
fn reported(found: &Found) -> (i64, i64) {
    let count = |word: &str| found.iter().filter(|step| step.starts_with(word)).count() as i64;
    (count("applied"), count("in doubt"))
}

/// Holds the conversation on a new pool, with at most this number of polls and with this cut. Returns whether it ended, and
/// the numbers of its polls and bytes.
macro_rules! holding {
    ($stage:expr, $router:expr, $conversation:path) => {{
        let stage: &Stage = $stage;
        move |most: usize, cut: Option<(Way, usize)>| {
            on_server(&stage.server, &["FLUSHALL"]);
            let router = $router(stage);
            let before = [Way::Sent, Way::Received].map(|way| stage.relay.passed(way));
            if let Some((way, after)) = cut {
                stage.relay.cut(way, after);
            }
            let what = format!("after {most} polls, cut at {cut:?}");
            let conversation = $conversation(&router, &stage.server);
            let (found, polls) = poll_at_most(&stage.runtime, most, conversation);
            stage.settle(&router);
            stage.relay.spare();
            let after = [Way::Sent, Way::Received].map(|way| stage.relay.passed(way));
            let mut one = String::new();
            // The EXEC of a dropped call may arrive between the two reads. A part that was applied stays a part.
            eventually(SOON, &what, || {
                let replies = on_server(&stage.server, READ_BOTH);
                one.clone_from(&replies[0]);
                replies[0] == replies[1]
            });
            if let Some(found) = &found {
                let (applied, in_doubt) = reported(found);
                let number = one.chars().filter(char::is_ascii_digit).collect::<String>();
                let number = number.parse::<i64>().unwrap_or_default();
                let possible = applied..=applied + in_doubt;
                assert!(possible.contains(&number), "{what}: {number} applied: {found:?}");
            }
            stage.check_next_caller(&router, cut.is_some(), &what);
            // A dropped future costs no connection.
            let replaced = router.counters().counts().replaced;
            assert!(cut.is_some() || replaced.is_empty(), "{what}: {replaced:?}");
            let most_open = 1 + router.settings().lanes as usize;
            eventually(SOON, &what, || stage.server.clients().len() <= most_open);
            (found.is_some(), polls, [after[0] - before[0], after[1] - before[1]])
        }
    }};
}

/// Drops the conversation after each number of polls, and cuts its connection after each byte.
macro_rules! drop_and_cut {
    ($conversation:path) => {{
        let stage = Stage::new();
        let hold = holding!(&stage, Stage::router::<TaskPool>, $conversation);
        let (ended, polls, passed) = hold(usize::MAX, None);
        assert!(ended);
        let mut held = 0;
        for most in 0..=polls {
            hold(most, None);
            for (way, length) in [Way::Sent, Way::Received].into_iter().zip(passed) {
                // Each byte is met by one number of polls, and by all of them in a long run.
                let step = step().max(length / MOST_CUTS);
                for after in (0..=length).filter(|after| (after + most) % step == 0) {
                    hold(most, Some((way, after)));
                    held += 1;
                }
            }
        }
        println!(
            "{}: {polls} polls, {passed:?} bytes, held {held} times",
            stringify!($conversation)
        );
    }};
}

/// Number of cuts in one direction with one number of polls. Only a block in chunks has more bytes.
const MOST_CUTS: usize = 1000;

/// Distance of the bytes at which a conversation is cut. 1: each number of polls meets each of them.
fn step() -> usize {
    let step = std::env::var("REDISCOPE_CUT_STEP").ok();
    step.map_or(7, |step| step.parse().expect("a number"))
}

#[test]
fn a_block_that_is_dropped_and_cut_leaves_a_clean_pool() {
    drop_and_cut!(conversations::a_block);
    drop_and_cut!(conversations::a_block_for_a_batch);
    drop_and_cut!(conversations::a_refused_block);
}

#[test]
fn a_pinned_block_that_is_dropped_and_cut_leaves_a_clean_pool() {
    drop_and_cut!(conversations::a_pinned_block);
}

#[test]
fn blocks_that_are_exactly_once_dropped_and_cut_leave_a_clean_pool() {
    drop_and_cut!(conversations::exactly_once_blocks);
    drop_and_cut!(conversations::blocks_with_a_key);
}

#[test]
fn watched_blocks_that_are_dropped_and_cut_leave_a_clean_pool() {
    drop_and_cut!(conversations::watched_blocks);
}

#[test]
fn a_block_in_chunks_that_is_dropped_and_cut_leaves_a_clean_pool() {
    drop_and_cut!(conversations::a_block_in_chunks);
}

#[test]
fn a_watching_run_that_is_dropped_and_cut_leaves_a_clean_pool() {
    drop_and_cut!(conversations::a_watching_run);
}

/// A pool that has an account of its own of the replies that a connection awaits, and keeps it after the bytes were sent.
fn with_a_late_account(stage: &Stage) -> Router<StubPool> {
    let router = stage.router::<StubPool>();
    let line = stage.finish(router.checkout(&Route::default(), soon())).unwrap();
    line.pool.counts_late.store(true, Ordering::Relaxed);
    drop(line);
    router
}

#[test]
fn an_account_that_is_kept_after_an_await_does_not_pass() {
    let stage = Stage::new();
    let hold = holding!(&stage, with_a_late_account, conversations::a_block);
    let (ended, polls, _) = hold(usize::MAX, None);
    assert!(ended);
    let passes = |most: &usize| catch_unwind(AssertUnwindSafe(|| hold(*most, None))).is_ok();
    let passed = (0..=polls).filter(passes).count();
    assert!((1..=polls).contains(&passed), "{passed} of {polls}");
    let hold = holding!(&stage, Stage::router::<StubPool>, conversations::a_block);
    (0..=polls).for_each(|most| _ = hold(most, None));
}
