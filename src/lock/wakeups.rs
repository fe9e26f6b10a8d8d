//! The connection and the thread that receive messages about releases: one for all locks of a
//! session manager, while any caller waits.
//!
//! Only this thread uses the connection. A caller that needs a channel records it in [`Waiters`]
//! and publishes on the thread's own channel, which ends the thread's read. Waiters do not depend
//! on the thread: without it they send a request from time to time.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use redis::Value;
use scopeguard::defer_on_unwind;
use tracing::Level;

use crate::error::checkout::CheckoutError;
use crate::error::connection::ConnectionError;
use crate::lock::client::ScriptClient;
use crate::lock::waiters::Waiters;
use crate::pool::router::{Generation, Router};
use crate::protocol::cluster::route::{Redirect, Route};
use crate::protocol::server_error::ServerError;
use crate::settings::settings::Settings;
use crate::sync::lock;

/// Maximum time of a read, and maximum delay of a change whose message was lost.
const TICK: Duration = Duration::from_millis(200);
/// Time for which the thread stays without a waiter.
const IDLE: Duration = Duration::from_secs(5);
/// Time without a message after which the connection is checked by PING.
const QUIET: Duration = Duration::from_secs(2);
/// Maximum delay before the next attempt to connect.
const PAUSE: Duration = Duration::from_millis(250);

/// The connection and the thread that receive messages about releases, if they run.
pub(crate) struct ReleaseListener {
    shared: Arc<Shared>,
}

struct Shared {
    nodes: Router,
    settings: Arc<Settings>,
    waiters: Arc<Waiters>,
    /// The thread's own channel.
    control_channel: String,
    state: Mutex<State>,
    changed: Condvar,
    /// A message to the thread is in flight.
    wakeup_sent: AtomicBool,
}

#[derive(Default)]
struct State {
    running: bool,
    /// The thread reads, so a change needs a message.
    listens: bool,
    over: bool,
}

/// The reason why the thread stopped reading.
enum Ended {
    Idle,
    Over,
    Broken(ConnectionError),
}

impl ReleaseListener {
    pub(crate) fn new(
        nodes: Router,
        settings: Arc<Settings>,
        waiters: Arc<Waiters>,
        random: u128,
    ) -> Self {
        let control_channel = format!("{}:ctl:{random:032x}", settings.prefix);
        let shared = Shared {
            nodes,
            settings,
            waiters,
            control_channel,
            state: Mutex::default(),
            changed: Condvar::new(),
            wakeup_sent: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Has a channel subscribed soon that a caller has just recorded.
    pub(crate) fn listen(&self, client: &ScriptClient, limit: Instant) {
        let listens = {
            let mut state = lock(&self.shared.state);
            if state.over {
                return;
            }
            if !state.running {
                let shared = Arc::clone(&self.shared);
                let thread = std::thread::Builder::new().name("rediscope-lock-events".to_owned());
                match thread.spawn(move || shared.run()) {
                    Ok(_) => state.running = true,
                    Err(error) => client.log_thread().log(Level::WARN, move || {
                        tracing::warn!(%error, "no thread to receive messages about releases");
                    }),
                }
            }
            state.listens
        };
        if listens && !self.shared.wakeup_sent.swap(true, Ordering::AcqRel) {
            let limit = limit.min(Instant::now() + TICK);
            if client.publish(&self.shared.control_channel, limit).is_err() {
                tracing::trace!("the subscriber will notice the change by itself");
            }
        }
    }

    /// Ends the thread: no caller waits any more, or will.
    pub(crate) fn close(&self) {
        lock(&self.shared.state).over = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn run(self: Arc<Self>) {
        defer_on_unwind! {
            // Waiters must not rely on the thread any more.
            let mut state = lock(&self.state);
            (state.running, state.listens) = (false, false);
            drop(state);
            self.waiters.down();
        }
        let mut pause = PAUSE / 32;
        loop {
            let connected = Instant::now();
            let term = self.nodes.generation();
            let ended = match self.connect() {
                Ok(mut connection) => self.serve(&mut connection, term),
                Err(error) => Ended::Broken(error),
            };
            lock(&self.state).listens = false;
            self.waiters.down();
            match ended {
                Ended::Broken(error) => {
                    tracing::debug!(error = %format_args!("{error:#}"), "not subscribed to releases; waiters poll");
                }
                // A caller that came meanwhile has seen that a thread runs.
                Ended::Idle => {}
                Ended::Over => return,
            }
            if connected.elapsed() > PAUSE {
                pause = PAUSE / 32;
            }
            if self.pause_before_retry(pause) {
                return;
            }
            pause = PAUSE.min(2 * pause);
        }
    }

    /// Connects to any node: a message published on one node arrives on all.
    fn connect(&self) -> Result<redis::Connection, ConnectionError> {
        let (limit, any) = (self.settings.connect_timeout, Route::default());
        let closed = |_| ConnectionError::unexpected("there is no server to subscribe to");
        let endpoint = self.nodes.endpoint(&any, Instant::now() + limit).map_err(closed)?;
        endpoint.client(limit).inspect_err(|source| {
            let error = CheckoutError::Connect { waited: limit, source: source.clone() };
            let by = Instant::now() + self.settings.checkout_timeout;
            let _: Option<Redirect> = self.nodes.on_unreachable(&any, &error, by);
        })
    }

    /// Waits before the next connection. Returns true if there is to be none.
    fn pause_before_retry(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause.mul_f64(0.5 + fastrand::f64() / 2.0);
        let mut state = lock(&self.state);
        loop {
            if state.over || self.waiters.is_empty() {
                // Set under the mutex: a caller that comes now starts a new thread.
                state.running = false;
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn serve(&self, connection: &mut redis::Connection, term: Generation) -> Ended {
        match self.begin(connection) {
            Ok(None) => {}
            Ok(Some(refused)) => return Ended::Broken(ConnectionError::refused(refused)),
            Err(error) => return Ended::Broken(ConnectionError::of(&error)),
        }
        let mut pubsub = connection.as_pubsub();
        let ended = self.listen(&mut pubsub, term);
        // The drop unsubscribes and reads the replies; there is no need to wait for them.
        let _: Result<(), _> = pubsub.set_read_timeout(Some(Duration::from_millis(5)));
        ended.unwrap_or_else(|error| Ended::Broken(ConnectionError::of(&error)))
    }

    /// Subscribes to the thread's own channel, to which redis-rs's `subscribe` would report
    /// no refusal. A user without the right to this channel has none to the others; a user
    /// without the right to PUBLISH sends no wakeups.
    fn begin(&self, connection: &mut redis::Connection) -> redis::RedisResult<Option<ServerError>> {
        connection.set_read_timeout(Some(self.settings.response_timeout))?;
        connection.set_write_timeout(Some(self.settings.response_timeout))?;
        let mut both =
            redis::cmd("PUBLISH").arg(&self.control_channel).arg("").get_packed_command();
        both.extend(redis::cmd("SUBSCRIBE").arg(&self.control_channel).get_packed_command());
        connection.send_packed_command(&both)?;
        for _ in 0..2 {
            if let Value::ServerError(error) = connection.recv_response()? {
                return Ok(Some(ServerError::from_reply(&error, false)));
            }
        }
        Ok(None)
    }

    fn listen(
        &self,
        pubsub: &mut redis::PubSub<'_>,
        term: Generation,
    ) -> redis::RedisResult<Ended> {
        lock(&self.state).listens = true;
        let (mut wanted, mut heard) = (Instant::now(), Instant::now());
        loop {
            self.wakeup_sent.store(false, Ordering::Release);
            pubsub.set_read_timeout(Some(self.settings.response_timeout))?;
            self.change(pubsub)?;
            if !self.waiters.is_empty() {
                wanted = Instant::now();
            }
            if lock(&self.state).over {
                return Ok(Ended::Over);
            }
            if self.nodes.generation() != term {
                let moved = ConnectionError::unexpected("another master, or other credentials");
                return Ok(Ended::Broken(moved));
            }
            if wanted.elapsed() >= IDLE {
                return Ok(Ended::Idle);
            }
            if heard.elapsed() >= QUIET {
                // As a value: a refusal is also a reply, so the connection is alive.
                let _: Value = pubsub.ping()?;
                heard = Instant::now();
            }
            pubsub.set_read_timeout(Some(TICK))?;
            if self.read_messages(pubsub)? {
                heard = Instant::now();
            }
        }
    }

    /// Sends one channel in each command: each command has one reply, so a reply belongs to its
    /// command.
    fn change(&self, pubsub: &mut redis::PubSub<'_>) -> redis::RedisResult<()> {
        let changes = self.waiters.changes();
        for channel in &changes.unsubscribe {
            pubsub.unsubscribe(channel)?;
        }
        for channel in &changes.subscribe {
            pubsub.subscribe(channel)?;
            self.waiters.live(channel);
        }
        Ok(())
    }

    /// Passes messages on. Ends at the first pause, or when the channels have changed. Returns
    /// whether a message arrived.
    fn read_messages(&self, pubsub: &mut redis::PubSub<'_>) -> redis::RedisResult<bool> {
        let until = Instant::now() + TICK;
        let mut heard = false;
        loop {
            match pubsub.get_message() {
                Ok(message) if message.get_channel_name() == self.control_channel => {
                    return Ok(true);
                }
                Ok(message) => {
                    let to = std::str::from_utf8(message.get_payload_bytes()).unwrap_or_default();
                    self.waiters.released(message.get_channel_name(), to);
                }
                Err(error) if error.is_timeout() => return Ok(heard),
                Err(error) => return Err(error),
            }
            heard = true;
            if Instant::now() >= until {
                return Ok(true);
            }
        }
    }
}

impl fmt::Debug for ReleaseListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = lock(&self.shared.state);
        f.debug_struct("ReleaseListener")
            .field("running", &state.running)
            .field("listens", &state.listens)
            .finish_non_exhaustive()
    }
}
