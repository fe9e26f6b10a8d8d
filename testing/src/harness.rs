//! What the suites of rediscope share beside servers and proxies.

use std::io::{self, Write as _};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, SystemTime};

use tracing::Dispatch;
use tracing::subscriber::NoSubscriber;

/// Timeout of every call on a connection made by [`connect`].
const CALL: Duration = Duration::from_secs(20);

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
