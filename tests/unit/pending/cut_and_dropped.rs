//! Conversations of tasks whose connection is cut at each byte, and whose future is dropped after each poll:
//! the next caller finds a clean connection or a new one, and no transaction is applied in part.

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::task::Poll;
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, Handle, Runtime};

use crate::commit::side::Side;
use crate::connection::endpoint::Endpoint;
use crate::connection::url::one as parse;
use crate::pool::config::PoolConfig;
use crate::pool::pending::conversations::{self, Found, READ_BOTH, on_server};
use crate::pool::router::Router;
use crate::pool::server_pool::ServerPool;
use crate::pool::tasks::pool::TaskPool;
use crate::pool::tests::{SOON, Server, config_of_one, eventually};
use crate::protocol::cluster::route::Route;
use crate::sync::lock;

/// A direction of the bytes through a [`Proxy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    Server,
    Client,
}

/// Where a connection is cut: after this number of bytes.
#[derive(Clone, Copy, Debug)]
struct CutAt {
    to: To,
    bytes: usize,
}

/// A proxy before the server's unix socket, which cuts its connections once.
struct Proxy {
    url: String,
    shared: Arc<ProxyShared>,
    address: std::net::SocketAddr,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct ProxyShared {
    /// Number of bytes that passed since the last [`Proxy::arm`].
    passed: [AtomicUsize; 2],
    cut: Mutex<Option<CutAt>>,
    ends: AtomicBool,
}

impl Proxy {
    fn start(server: &Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::<ProxyShared>::default();
        let (path, of_thread) = (server.socket(), Arc::clone(&shared));
        let thread = std::thread::spawn(move || {
            for client in listener.incoming() {
                if of_thread.ends.load(Ordering::SeqCst) {
                    return;
                }
                let client = client.unwrap();
                client.set_nodelay(true).unwrap();
                let server = UnixStream::connect(&path).unwrap();
                let (shared, back) = (Arc::clone(&of_thread), Arc::clone(&of_thread));
                let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || shared.pass(To::Server, from, to));
                std::thread::spawn(move || back.pass(To::Client, server, client));
            }
        });
        let url = format!("redis://{address}");
        Self { url, shared, address, thread: Some(thread) }
    }

    /// Counts from now on, and cuts there.
    fn arm(&self, cut: Option<CutAt>) {
        let mut armed = lock(&self.shared.cut);
        self.shared.passed.iter().for_each(|passed| passed.store(0, Ordering::SeqCst));
        *armed = cut;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
        self.thread.take().map(|thread| thread.join().unwrap());
    }
}

/// A socket of either family.
trait Socket: Read + Write {
    fn close(&self);
}

impl Socket for TcpStream {
    fn close(&self) {
        let _: std::io::Result<()> = self.shutdown(Shutdown::Both);
    }
}

impl Socket for UnixStream {
    fn close(&self) {
        let _: std::io::Result<()> = self.shutdown(Shutdown::Both);
    }
}

impl ProxyShared {
    fn pass(&self, direction: To, mut from: impl Socket, mut to: impl Socket) {
        let mut bytes = [0; 4096];
        while let Ok(read @ 1..) = from.read(&mut bytes) {
            let mut cut = lock(&self.cut);
            let passed = &self.passed[usize::from(direction == To::Client)];
            let before = passed.fetch_add(read, Ordering::SeqCst);
            let end = cut.filter(|cut| cut.to == direction && cut.bytes < before + read);
            let length = end.map_or(read, |cut| cut.bytes - before);
            if end.is_some() {
                *cut = None;
            }
            drop(cut);
            if to.write_all(&bytes[..length]).is_err() || end.is_some() {
                break;
            }
        }
        from.close();
        to.close();
    }
}

/// Polls the future `polls` times, lets other tasks run `yields` times, then drops it. `None`: it was
/// still pending.
async fn dropped_after<T>(
    polls: usize,
    yields: usize,
    future: impl Future<Output = T>,
) -> Option<T> {
    let mut future = Box::pin(future);
    let mut left = polls;
    let ended = std::future::poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await;
    if ended.is_none() {
        for _ in 0..yields {
            tokio::task::yield_now().await;
        }
    }
    drop(future);
    ended
}

thread_local! {
    static IS_QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Catches a panic of a conversation that expects its connection to live, without a backtrace.
fn quietly<T>(call: impl FnOnce() -> T) -> std::thread::Result<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !IS_QUIET.get() {
                others(panic);
            }
        }));
    });
    IS_QUIET.set(true);
    let result = catch_unwind(AssertUnwindSafe(call));
    IS_QUIET.set(false);
    result
}

/// What is done to a conversation.
#[derive(Clone, Copy, Debug)]
struct Case {
    cut: Option<CutAt>,
    polls: usize,
    yields: usize,
}

/// A server, and a pool of one connection through a proxy.
struct Stage {
    server: Server,
    proxy: Proxy,
    runtime: Runtime,
    router: Router<TaskPool>,
    config: PoolConfig,
}

impl Stage {
    fn start() -> Self {
        let server = Server::start();
        let proxy = Proxy::start(&server);
        let (config, _) = config_of_one(&server, 2 * SOON);
        let endpoint = Endpoint::new(parse(&*proxy.url).unwrap(), &config.settings).unwrap();
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let router = Router::<TaskPool>::one(config.clone(), endpoint);
        Self { server, proxy, runtime, router, config }
    }

    /// Runs a conversation. Returns what it found, unless it was dropped, and the numbers of bytes that
    /// passed the proxy.
    fn play<'s, C: Future<Output = Found>>(
        &'s self,
        case: Case,
        conversation: impl FnOnce(&'s Router<TaskPool>, &'s Server) -> C,
    ) -> (Option<Found>, [usize; 2]) {
        on_server(&self.server, &["FLUSHALL"]);
        // A connection is idle.
        let line =
            self.runtime.block_on(self.router.checkout(&Route::default(), conversations::soon()));
        drop(line.unwrap());
        self.proxy.arm(case.cut);
        let future = conversation(&self.router, &self.server);
        let ended = self.runtime.block_on(dropped_after(case.polls, case.yields, future));
        let passed = [0, 1].map(|at| self.proxy.shared.passed[at].load(Ordering::SeqCst));
        (ended, passed)
    }

    /// Ends the pool, its tasks and its connections.
    fn end(self) {
        let Self { server, proxy, runtime, router, .. } = self;
        drop(router);
        runtime.block_on(async {
            let begun = Instant::now();
            while Handle::current().metrics().num_alive_tasks() > 0 {
                assert!(begun.elapsed() < SOON, "a task is left");
                tokio::task::yield_now().await;
            }
        });
        eventually(SOON, "no connection is left", || server.clients().is_empty());
        drop(proxy);
    }

    /// Checks that the next caller has nothing of the conversation.
    fn check(&self, case: Case, whole: bool) {
        self.proxy.arm(None);
        let [one, two] = &*on_server(&self.server, READ_BOTH) else { panic!("two replies") };
        // A block may still be on its way; it is applied before the next one of the same connection.
        on_server(&self.server, &["SET seen touched"]);
        let found = self.runtime.block_on(conversations::a_block(&self.router, &self.server));
        assert!(found[0].starts_with("applied [int("), "{case:?}: {found:?}");
        let numbers = found[0].trim_start_matches("applied [").trim_end_matches(']');
        let (first, second) = numbers.split_once(", ").unwrap();
        assert!(first == second || !whole, "{case:?}: {one}, {two}, then {found:?}");
        assert!(found[1] == found[2] || !whole, "{case:?}: {found:?}");
        assert!(
            self.server.clients().iter().all(|flags| !flags.contains('x')),
            "{case:?}: in MULTI"
        );
    }
}

/// Cuts a conversation at each byte, drops it after each poll, and does both at places drawn at random.
/// `whole`: both counters are changed together.
macro_rules! cut_and_drop {
    ($conversation:path) => {
        cut_and_drop!($conversation, true)
    };
    ($conversation:path, $whole:expr) => {{
        let stage = Stage::start();
        let conversation = |router, server| $conversation(router, server);
        let mut case = Case { cut: None, polls: usize::MAX, yields: 0 };
        let (ended, length) = stage.play(case, conversation);
        assert!(ended.is_some() && length.iter().all(|bytes| *bytes > 0), "{length:?}");
        stage.check(case, $whole);
        let mut most_polls = 0;
        for yields in [0, 1, 2, 50] {
            for polls in 0.. {
                case = Case { cut: None, polls, yields };
                let (ended, _) = stage.play(case, conversation);
                stage.check(case, $whole);
                if ended.is_some() {
                    most_polls = most_polls.max(polls);
                    break;
                }
            }
        }
        assert!(most_polls > 1, "{most_polls}");
        // A dropped future costs no connection.
        let replaced = stage.config.counters.counts().replaced;
        assert!(!$whole || replaced.is_empty(), "{replaced:?}");
        let mut cuts = 0;
        for (to, bytes) in [(To::Server, length[0]), (To::Client, length[1])] {
            for bytes in 0..bytes.min(400) {
                // Conversations that expect to go on panic when their connection is cut.
                for polls in [usize::MAX, fastrand::usize(1..=most_polls)] {
                    let cut = Some(CutAt { to, bytes });
                    case = Case { cut, polls, yields: fastrand::usize(..4) };
                    let _: Result<_, _> = quietly(|| stage.play(case, conversation));
                    cuts += usize::from(lock(&stage.proxy.shared.cut).is_none());
                    stage.check(case, $whole);
                }
            }
        }
        assert!(cuts > length.iter().sum::<usize>().min(400) / 2, "{cuts} of {length:?}");
        stage.end();
    }};
}

#[test]
fn a_block_that_is_cut_and_dropped_is_applied_whole_or_not_at_all() {
    cut_and_drop!(conversations::a_block);
}

#[test]
fn a_block_that_may_be_batched_is_applied_whole_or_not_at_all() {
    cut_and_drop!(conversations::a_block_for_a_batch);
}

#[test]
fn a_refused_block_leaves_nothing_behind() {
    cut_and_drop!(conversations::a_refused_block);
}

#[test]
fn a_pinned_block_leaves_nothing_behind() {
    cut_and_drop!(conversations::a_pinned_block);
}

#[test]
fn exactly_once_blocks_are_applied_whole_or_not_at_all() {
    cut_and_drop!(conversations::exactly_once_blocks);
}

#[test]
fn blocks_with_a_key_are_applied_whole_or_not_at_all() {
    cut_and_drop!(conversations::blocks_with_a_key);
}

#[test]
fn watched_blocks_leave_no_watch() {
    cut_and_drop!(conversations::watched_blocks);
}

#[test]
fn cleaned_scopes_leave_no_watch_and_no_multi() {
    cut_and_drop!(conversations::cleaned_scopes);
}

#[test]
fn a_block_in_chunks_is_applied_whole_or_not_at_all() {
    cut_and_drop!(conversations::a_block_in_chunks);
}

#[test]
fn runs_leave_nothing_behind() {
    cut_and_drop!(conversations::runs);
}

#[test]
fn a_watching_run_leaves_no_watch() {
    cut_and_drop!(conversations::a_watching_run);
}

#[test]
fn a_read_leaves_no_reply() {
    cut_and_drop!(conversations::a_read, false);
}

#[test]
fn requests_leave_no_reply() {
    cut_and_drop!(conversations::requests, false);
}

/// A connection whose flag is set after an await, as in a pool that is not safe to drop.
struct Flagged {
    stream: tokio::net::TcpStream,
    is_dirty: bool,
}

impl Flagged {
    async fn line(&mut self) -> String {
        let mut line = String::new();
        while !line.ends_with("\r\n") {
            line.push(char::from(self.stream.read_u8().await.unwrap()));
        }
        line
    }

    async fn block(&mut self) {
        let bytes = b"*1\r\n$5\r\nMULTI\r\n*2\r\n$4\r\nINCR\r\n$3\r\none\r\n*1\r\n$4\r\nEXEC\r\n";
        self.stream.write_all(bytes).await.unwrap();
        self.line().await;
        self.is_dirty = true;
        for _ in 0..3 {
            self.line().await;
        }
        self.is_dirty = false;
    }

    async fn ping(&mut self) -> String {
        self.stream.write_all(b"*1\r\n$4\r\nPING\r\n").await.unwrap();
        self.line().await
    }
}

/// What the other tests of this file would find if the state changed after an await.
#[test]
fn a_flag_that_is_set_after_an_await_leaves_a_reply_to_the_next_caller() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let mut wrong = 0;
    runtime.block_on(async {
        for polls in 0.. {
            let stream = tokio::net::TcpStream::connect(proxy.address).await.unwrap();
            let mut connection = Flagged { stream, is_dirty: false };
            let ended = dropped_after(polls, 0, connection.block()).await;
            if !connection.is_dirty {
                wrong += usize::from(connection.ping().await != "+PONG\r\n");
            }
            if ended.is_some() {
                break;
            }
        }
    });
    assert!(wrong > 0);
}
