//! What the tests of rediscope use: real servers, clusters and sentinels, a proxy that breaks
//! connections at exact points, and polling with a deadline.
//!
//! It does not depend on rediscope, because the tests of rediscope depend on it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a panic with a clear message is how it reports"
)]

pub mod cluster;
pub mod front;
pub mod process;
pub mod program;
pub mod proxy;
pub mod sentinel;
pub mod server;
pub mod soak;
pub mod tls;
pub mod unresponsive_port;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{LazyLock, OnceLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use tracing::Dispatch;
use tracing::subscriber::NoSubscriber;

/// Delay between two checks of a poll, for the first ones and later.
const PAUSES: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(5)];

/// Timeout of every call on a connection made by [`connect`].
const CALL: Duration = Duration::from_secs(20);

/// Polls until `f` is true; panics with `what` when that takes longer than `deadline`.
#[track_caller]
pub fn eventually(deadline: Duration, what: &str, mut f: impl FnMut() -> bool) {
    if try_for(deadline, || f().then_some(())).is_none() {
        panic!("not within {deadline:?}: {what}");
    }
}

/// Polls until `f` gives a value; `None` when that takes longer than `deadline`. `f` is called at
/// least once, and once more after the deadline.
pub fn try_for<T>(deadline: Duration, mut f: impl FnMut() -> Option<T>) -> Option<T> {
    let begun = Instant::now();
    loop {
        let late = begun.elapsed() >= deadline;
        let value = f();
        if value.is_some() || late {
            return value;
        }
        thread::sleep(PAUSES[usize::from(begun.elapsed() > Duration::from_millis(20))]);
    }
}

/// Returns the result of `call`; panics with `what` if that takes longer than `deadline`. It runs on a
/// thread of its own: if it hangs, its test fails and the others continue.
#[track_caller]
pub fn in_time<T: Send + 'static>(
    deadline: Duration,
    what: &str,
    call: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (answer, answered) = mpsc::channel();
    thread::spawn(move || answer.send(call()));
    match answered.recv_timeout(deadline) {
        Ok(answer) => answer,
        Err(RecvTimeoutError::Timeout) => panic!("not within {deadline:?}: {what}"),
        Err(RecvTimeoutError::Disconnected) => panic!("it panicked: {what}"),
    }
}

/// Reports on the standard error of a passed test why it asserts nothing on this machine.
pub fn not_run(reason: &str) {
    let thread = thread::current();
    let test = thread.name().unwrap_or("a test");
    // The macros would be captured.
    let _ = writeln!(io::stderr(), "not run: {test}: {reason}");
}

/// Runs `call` under a log of its own.
///
/// While a process has one subscriber only, a callsite is switched off for good if a thread without
/// that subscriber is the first to reach it. Two more, which take no event, rule that out.
pub fn under_log<T>(
    log: impl tracing::Subscriber + Send + Sync + 'static,
    call: impl FnOnce() -> T,
) -> T {
    static IDLE: OnceLock<[Dispatch; 2]> = OnceLock::new();
    IDLE.get_or_init(|| [(); 2].map(|()| Dispatch::new(NoSubscriber::default())));
    tracing::subscriber::with_default(log, call)
}

/// A plain connection through a proxy or past it, with timeouts set; it has shaken hands already.
#[track_caller]
pub fn connect(url: &str) -> redis::Connection {
    let client = redis::Client::open(url).expect("a redis URL");
    let connection = client.get_connection_with_timeout(CALL).expect("connect to the test server");
    connection.set_read_timeout(Some(CALL)).expect("set the read timeout");
    connection.set_write_timeout(Some(CALL)).expect("set the write timeout");
    connection
}

/// A command as it goes over the wire.
pub fn packed(words: &[&str]) -> Vec<u8> {
    redis::cmd(words[0]).arg(&words[1..]).get_packed_command()
}

/// A key name no other test uses, also not one in another process or an earlier run.
pub fn unique(prefix: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos());
    format!("{prefix}:{}:{now:x}:{count}", std::process::id())
}

/// A folder for a server's files, in memory if there is enough of it. Cluster nodes and sentinels
/// wait for the disk at each change, and on a busy disk they look dead.
pub(crate) fn home() -> tempfile::TempDir {
    static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
        let memory = PathBuf::from("/dev/shm");
        if free_bytes(&memory) >= 1 << 30 { memory } else { std::env::temp_dir() }
    });
    let mut builder = tempfile::Builder::new();
    builder.prefix("redis-").tempdir_in(&*FOLDER).expect("a temporary directory")
}

/// Space left in the file system of `folder`, by `df`; 0 if that fails.
fn free_bytes(folder: &Path) -> u64 {
    let Ok(output) = Command::new("df").arg("-Pk").arg(folder).output() else { return 0 };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let free = text.lines().nth(1).and_then(|line| line.split_whitespace().nth(3));
    free.and_then(|kib| kib.parse::<u64>().ok()).map_or(0, |kib| kib << 10)
}

/// Resident memory of this process; `None` if `/proc` does not have it.
pub fn rss_bytes() -> Option<u64> {
    resident_bytes(Path::new("/proc/self/status"))
}

/// Threads of this process; `None` if `/proc` does not have them.
pub fn threads() -> Option<usize> {
    Some(std::fs::read_dir("/proc/self/task").ok()?.count())
}

/// From a `/proc/<pid>/status` file, which gives kibibytes where `statm` gives pages of unknown size.
fn resident_bytes(status: &Path) -> Option<u64> {
    let status = std::fs::read_to_string(status).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024)
}
