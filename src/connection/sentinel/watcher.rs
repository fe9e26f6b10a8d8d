//! The thread that receives failover messages from a sentinel, and also queries each second.
//!
//! No connection waits for it: without this thread, callers that connect send the query.

use std::ops::Deref;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tracing::Level;

use crate::connection::sentinel::blocking_queries::BlockingQueries;
use crate::connection::sentinel::client::{FRESH, SentinelClient};
use crate::error::connection::ConnectionError;
use crate::process::worker::{BackgroundWorker, Next, Shared, Work};
use crate::sync::now::now;

/// Maximum time of a read, which delays the thread's end, and minimum time between two attempts to
/// subscribe.
const TICK: Duration = Duration::from_millis(200);
/// Time without a message after which the sentinel is checked by PING.
const QUIET: Duration = Duration::from_secs(2);

/// The address of a master, and the thread that watches for its failover.
pub(crate) struct WatchedMaster {
    client: SentinelClient,
    watcher: BackgroundWorker<()>,
}

impl Deref for WatchedMaster {
    type Target = SentinelClient;

    fn deref(&self) -> &SentinelClient {
        &self.client
    }
}

impl WatchedMaster {
    pub(crate) fn new(client: SentinelClient) -> Self {
        Self { client, watcher: BackgroundWorker::new("rediscope-sentinel", ()) }
    }

    /// Ends the thread; no other one is started.
    pub(crate) fn close(&self) {
        self.watcher.close();
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
    pubsub.subscribe("+switch-master")?;
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
