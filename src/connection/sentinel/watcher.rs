//! The thread that receives failover messages from a sentinel, and also queries each second; for
//! callers that are tasks, a task of each runtime.
//!
//! No connection waits for it: without it, callers that connect send the query.

use std::ops::Deref;
#[cfg(feature = "tokio")]
use std::sync::Mutex;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

#[cfg(feature = "tokio")]
use tokio::runtime::{self, Handle};
#[cfg(feature = "tokio")]
use tokio::task::AbortHandle;
use tracing::Level;

use crate::connection::sentinel::blocking_queries::BlockingQueries;
use crate::connection::sentinel::client::{FRESH, SentinelClient};
use crate::error::connection::ConnectionError;
use crate::process::worker::{BackgroundWorker, Next, Shared, Work};
#[cfg(feature = "tokio")]
use crate::sync::lock;
use crate::sync::now::now;

/// Maximum time of a read, which delays the thread's end, and minimum time between two attempts to
/// subscribe.
pub(crate) const TICK: Duration = Duration::from_millis(200);
/// Time without a message after which the sentinel is checked by PING.
const QUIET: Duration = Duration::from_secs(2);

/// Channel of the failover messages.
pub(crate) const CHANNEL: &str = "+switch-master";

/// The address of a master, and the thread or the tasks that watch for its failover.
pub(crate) struct WatchedMaster {
    client: Arc<SentinelClient>,
    watcher: BackgroundWorker<()>,
    #[cfg(feature = "tokio")]
    tasks: Mutex<WatchTasks>,
}

/// The tasks that watch, one for each runtime that uses the master.
#[cfg(feature = "tokio")]
#[derive(Default)]
struct WatchTasks {
    running: Vec<(runtime::Id, AbortHandle)>,
    closed: bool,
}

impl Deref for WatchedMaster {
    type Target = SentinelClient;

    fn deref(&self) -> &SentinelClient {
        &self.client
    }
}

impl WatchedMaster {
    pub(crate) fn new(client: SentinelClient) -> Self {
        Self {
            client: Arc::new(client),
            watcher: BackgroundWorker::new("rediscope-sentinel", ()),
            #[cfg(feature = "tokio")]
            tasks: Mutex::default(),
        }
    }

    /// Ends the thread and the tasks; no other one is started.
    pub(crate) fn close(&self) {
        self.watcher.close();
        #[cfg(feature = "tokio")]
        self.end_tasks();
    }

    /// Has a task of the runtime run `watch`, unless one does. It ends with the master's last user.
    #[cfg(feature = "tokio")]
    pub(crate) fn watch_in_task<F: Future<Output = ()> + Send + 'static>(
        &self,
        runtime: &Handle,
        watch: impl FnOnce(Arc<SentinelClient>) -> F,
    ) {
        let mut tasks = lock(&self.tasks);
        let id = runtime.id();
        tasks.running.retain(|(_, task)| !task.is_finished());
        if tasks.closed || tasks.running.iter().any(|(of, _)| *of == id) {
            return;
        }
        let task = self.settings.tasks.spawn(runtime, watch(Arc::clone(&self.client)));
        tasks.running.push((id, task));
    }

    #[cfg(feature = "tokio")]
    fn end_tasks(&self) {
        let mut tasks = lock(&self.tasks);
        tasks.closed = true;
        let running = std::mem::take(&mut tasks.running);
        drop(tasks);
        running.iter().for_each(|(_, task)| task.abort());
    }

    /// Starts the thread, unless it runs.
    pub(crate) fn watch(self: &Arc<Self>) {
        let watch =
            || SentinelWatch { master: Arc::downgrade(self), nth: 0, next_try: Instant::now() };
        if let Err(error) = self.watcher.start(&mut self.watcher.lock(), watch) {
            self.log_thread.log(Level::WARN, move || {
                tracing::warn!(%error, "no thread to receive messages about failovers");
            });
        }
    }

    /// Queries the sentinels if the last report is no longer fresh.
    fn refresh(&self) {
        let latest = Instant::now() + self.settings.connect_timeout;
        if let Err(error) = now(self.master::<BlockingQueries>(latest)) {
            tracing::debug!(master = %self.name, %error, "the sentinels report no master");
        }
    }
}

/// In a forked child the tasks belong to the parent.
#[cfg(feature = "tokio")]
impl Drop for WatchedMaster {
    fn drop(&mut self) {
        if !self.settings.is_forked_child() {
            self.end_tasks();
        }
    }
}

/// Returns `None` if the master has no user any more.
fn needed(master: &Weak<WatchedMaster>) -> Option<Arc<WatchedMaster>> {
    master.upgrade().filter(|master| !master.watcher.is_closed())
}

/// The thread's work: to subscribe to one sentinel after the other.
struct SentinelWatch {
    master: Weak<WatchedMaster>,
    nth: usize,
    next_try: Instant,
}

impl Work for SentinelWatch {
    type State = ();
    type Job = ();
    const IDLE: Duration = Duration::ZERO;

    fn next(&mut self, (): &mut (), now: Instant) -> Next<()> {
        if now < self.next_try {
            return Next::WaitUntil(self.next_try);
        }
        self.next_try = now + TICK;
        Next::Run(())
    }

    fn run(&mut self, _: &Shared<()>, (): ()) {
        let Some(here) = needed(&self.master) else { return };
        let sentinel = here.sentinels.get(self.nth % here.sentinels.len()).cloned();
        let (timeout, name) = (here.query_timeout, here.name.clone());
        self.nth += 1;
        here.refresh();
        drop(here);
        let Some(sentinel) = sentinel else { return };
        let heard = sentinel.client(sentinel.auth_info(), timeout).and_then(|mut connection| {
            listen(&self.master, &mut connection, &name, timeout)
                .map_err(|error| ConnectionError::of(&error))
        });
        if let Err(error) = heard {
            tracing::debug!(sentinel = sentinel.address(), %error, "not subscribed to failovers");
        }
    }
}

/// Reads messages until the sentinel fails, or the master has no user any more.
fn listen(
    master: &Weak<WatchedMaster>,
    connection: &mut redis::Connection,
    name: &str,
    timeout: Duration,
) -> redis::RedisResult<()> {
    connection.set_read_timeout(Some(timeout))?;
    connection.set_write_timeout(Some(timeout))?;
    let mut pubsub = connection.as_pubsub();
    pubsub.subscribe(CHANNEL)?;
    let mut heard = Instant::now();
    loop {
        let Some(here) = needed(master) else { return Ok(()) };
        let old = here.state().updated.is_none_or(|at| at.elapsed() >= FRESH);
        if old {
            here.refresh();
        }
        drop(here);
        if heard.elapsed() >= QUIET {
            pubsub.set_read_timeout(Some(timeout))?;
            // As a value: a refusal is also a reply, so the connection is alive.
            let _: redis::Value = pubsub.ping()?;
            heard = Instant::now();
        }
        pubsub.set_read_timeout(Some(TICK))?;
        match pubsub.get_message() {
            Ok(message) => {
                heard = Instant::now();
                let about = message.get_payload_bytes().split(|byte| *byte == b' ').next();
                if about == Some(name.as_bytes())
                    && let Some(here) = needed(master)
                {
                    here.invalidate();
                }
            }
            Err(error) if error.is_timeout() => {}
            Err(error) => return Err(error),
        }
    }
}
