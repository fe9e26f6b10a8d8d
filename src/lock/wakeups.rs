//! The connection and the thread that receive messages about releases: one for all locks of a
//! session manager, while any caller waits.
//!
//! Only this thread uses the connection. A caller that needs a channel records it in [`ThreadWaiters`]
//! and publishes on the thread's own channel, which ends the thread's read. Waiters do not depend
//! on the thread: without it they send a request from time to time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::Value;
use scopeguard::defer;
use tracing::Level;

use crate::connection::endpoint::Endpoint;
use crate::error::checkout::CheckoutError;
use crate::error::connection::ConnectionError;
use crate::lock::client::ScriptClient;
use crate::lock::thread_waiters::ThreadWaiters;
use crate::lock::waiters::{LISTENER_IDLE, LISTENER_PAUSE, LISTENER_QUIET, listener_pauses};
use crate::pool::router::Router;
use crate::process::worker::{BackgroundWorker, Next, Shared, Work};
use crate::protocol::cluster::route::{Redirect, Route};
use crate::protocol::retry::Backoff;
use crate::protocol::server_error::ServerError;
use crate::sync::now::now;

/// Maximum time of a read, and maximum delay of a change whose message was lost.
const TICK: Duration = Duration::from_millis(200);

/// The connection and the thread that receive messages about releases, if they run.
pub(crate) struct ReleaseListener {
    router: Router,
    waiters: Arc<ThreadWaiters>,
    /// The thread's own channel.
    control_channel: Arc<str>,
    worker: BackgroundWorker<ListenerState>,
}

#[derive(Default)]
struct ListenerState {
    /// The thread reads, so a change needs a message.
    listens: bool,
    /// A message to the thread is in flight.
    wakeup_sent: bool,
}

impl ReleaseListener {
    pub(crate) fn new(router: Router, waiters: Arc<ThreadWaiters>) -> Self {
        // This is not a secret: two managers with the same number would only wake each other.
        let random = fastrand::u128(..);
        let control_channel = format!("{}:ctl:{random:032x}", router.settings().prefix).into();
        let worker = BackgroundWorker::new("rediscope-lock-events", ListenerState::default());
        Self { router, waiters, control_channel, worker }
    }

    /// Has a channel subscribed soon that a caller has just recorded.
    pub(crate) fn listen(&self, client: &ScriptClient, limit: Instant) {
        let mut state = self.worker.lock();
        if let Err(error) = self.worker.start(&mut state, || self.work()) {
            client.log_thread().log(Level::WARN, move || {
                tracing::warn!(%error, "no thread to receive messages about releases");
            });
        }
        let wakes = state.listens && !std::mem::replace(&mut state.wakeup_sent, true);
        drop(state);
        if wakes {
            let limit = limit.min(Instant::now() + TICK);
            if now(client.publish(&self.control_channel, limit)).is_err() {
                tracing::trace!("the subscriber will notice the change by itself");
            }
        }
    }

    fn work(&self) -> ListenerWork {
        ListenerWork {
            router: self.router.clone(),
            waiters: Arc::clone(&self.waiters),
            control_channel: Arc::clone(&self.control_channel),
            pauses: listener_pauses(),
            next_try: Instant::now(),
        }
    }

    /// Ends the thread: no caller waits any more, or will.
    pub(crate) fn close(&self) {
        self.worker.close();
    }
}

/// The thread's work: to connect, and to receive messages.
struct ListenerWork {
    router: Router,
    waiters: Arc<ThreadWaiters>,
    control_channel: Arc<str>,
    pauses: Backoff,
    next_try: Instant,
}

impl Work for ListenerWork {
    type State = ListenerState;
    type Job = ();
    const IDLE: Duration = Duration::ZERO;

    fn next(&mut self, _: &mut ListenerState, now: Instant) -> Next<()> {
        if self.waiters.is_empty() {
            return Next::End;
        }
        if now < self.next_try {
            return Next::WaitUntil(self.next_try);
        }
        self.next_try = now + self.pauses.wait();
        Next::Run(())
    }

    fn run(&mut self, shared: &Shared<ListenerState>, (): ()) {
        let begun = Instant::now();
        let ended = {
            // Also after a panic: waiters must not rely on the thread any more.
            defer! {
                shared.lock().listens = false;
                self.waiters.down();
            }
            self.connect()
                .and_then(|(mut connection, origin)| self.serve(shared, &mut connection, &origin))
        };
        if let Err(error) = ended {
            tracing::debug!(error = %format_args!("{error:#}"), "not subscribed to releases; waiters poll");
        }
        if begun.elapsed() > LISTENER_PAUSE {
            self.pauses = listener_pauses();
        }
    }
}

/// The server that a connection leads to, the number of failovers before, and the credentials.
struct Origin {
    endpoint: Endpoint,
    generation: u64,
    version: Option<u64>,
}

impl Origin {
    /// Calls the provider of credentials, which may block.
    fn of(endpoint: Endpoint) -> Self {
        let (generation, version) = (endpoint.generation(), version(&endpoint));
        Self { endpoint, generation, version }
    }

    /// Returns whether another server serves, or the credentials have changed. The same holds for the call.
    fn is_outdated(&self) -> bool {
        self.endpoint.generation() != self.generation
            || version(&self.endpoint).is_some_and(|version| Some(version) != self.version)
    }
}

/// Returns the version of the credentials, unless the provider panics.
fn version(endpoint: &Endpoint) -> Option<u64> {
    endpoint.provider()?.version_unless_it_panics()
}

impl ListenerWork {
    /// Connects to any node: a message published on one node arrives on all.
    fn connect(&self) -> Result<(redis::Connection, Origin), ConnectionError> {
        let (limit, any) = (self.router.settings().connect_timeout, Route::default());
        let closed = |_| ConnectionError::unexpected("there is no server to subscribe to");
        let endpoint = now(self.router.endpoint(&any, Instant::now() + limit)).map_err(closed)?;
        let origin = Origin::of(endpoint);
        let opened = origin.endpoint.client(limit).inspect_err(|source| {
            let error = CheckoutError::Connect { waited: limit, source: source.clone() };
            let by = Instant::now() + self.router.settings().checkout_timeout;
            let _: Option<Redirect> = now(self.router.on_unreachable(&any, &error, by));
        });
        Ok((opened?, origin))
    }

    /// Receives messages until no caller waits any more, or the worker is closed.
    fn serve(
        &self,
        shared: &Shared<ListenerState>,
        connection: &mut redis::Connection,
        origin: &Origin,
    ) -> Result<(), ConnectionError> {
        if let Some(refused) =
            self.begin(connection).map_err(|error| ConnectionError::of(&error))?
        {
            return Err(ConnectionError::refused(refused));
        }
        let mut pubsub = connection.as_pubsub();
        let ended = self.listen(shared, &mut pubsub, origin);
        // The drop unsubscribes and reads the replies; there is no need to wait for them.
        let _: Result<(), _> = pubsub.set_read_timeout(Some(Duration::from_millis(5)));
        if ended.map_err(|error| ConnectionError::of(&error))? {
            return Err(ConnectionError::unexpected("another master, or other credentials"));
        }
        Ok(())
    }

    /// Subscribes to the thread's own channel, to which redis-rs's `subscribe` would report
    /// no refusal. A user without the right to this channel has none to the others; a user
    /// without the right to PUBLISH sends no wakeups.
    fn begin(&self, connection: &mut redis::Connection) -> redis::RedisResult<Option<ServerError>> {
        connection.set_read_timeout(Some(self.router.settings().response_timeout))?;
        connection.set_write_timeout(Some(self.router.settings().response_timeout))?;
        let channel = &*self.control_channel;
        let mut both = redis::cmd("PUBLISH").arg(channel).arg("").get_packed_command();
        both.extend(redis::cmd("SUBSCRIBE").arg(channel).get_packed_command());
        connection.send_packed_command(&both)?;
        for _ in 0..2 {
            if let Value::ServerError(error) = connection.recv_response()? {
                return Ok(Some(ServerError::from_reply(&error, false)));
            }
        }
        Ok(None)
    }

    /// Returns true if the connection leads to a server that is to be left.
    fn listen(
        &self,
        shared: &Shared<ListenerState>,
        pubsub: &mut redis::PubSub<'_>,
        origin: &Origin,
    ) -> redis::RedisResult<bool> {
        shared.lock().listens = true;
        let (mut wanted, mut last_message) = (Instant::now(), Instant::now());
        while !shared.is_closed() {
            shared.lock().wakeup_sent = false;
            pubsub.set_read_timeout(Some(self.router.settings().response_timeout))?;
            self.change(pubsub)?;
            if !self.waiters.is_empty() {
                wanted = Instant::now();
            }
            if origin.is_outdated() {
                return Ok(true);
            }
            if wanted.elapsed() >= LISTENER_IDLE {
                break;
            }
            if last_message.elapsed() >= LISTENER_QUIET {
                // As a value: a refusal is also a reply, so the connection is alive.
                let _: Value = pubsub.ping()?;
                last_message = Instant::now();
            }
            pubsub.set_read_timeout(Some(TICK))?;
            if self.read_messages(pubsub)? {
                last_message = Instant::now();
            }
        }
        Ok(false)
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
            let _: bool = self.waiters.live(channel);
        }
        Ok(())
    }

    /// Passes messages on. Ends at the first pause, or when the channels have changed. Returns
    /// whether a message arrived.
    fn read_messages(&self, pubsub: &mut redis::PubSub<'_>) -> redis::RedisResult<bool> {
        let until = Instant::now() + TICK;
        let mut received = false;
        loop {
            match pubsub.get_message() {
                Ok(message) if message.get_channel_name() == &*self.control_channel => {
                    return Ok(true);
                }
                Ok(message) => {
                    let to = std::str::from_utf8(message.get_payload_bytes()).unwrap_or_default();
                    self.waiters.released(message.get_channel_name(), to);
                }
                Err(error) if error.is_timeout() => return Ok(received),
                Err(error) => return Err(error),
            }
            received = true;
            if Instant::now() >= until {
                return Ok(true);
            }
        }
    }
}
