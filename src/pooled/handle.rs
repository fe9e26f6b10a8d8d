//! The pooled handle: single commands, each on a connection borrowed for its own round trip.
//!
//! The handle refuses a command that would leave state on a shared connection, and sends no write
//! twice.

use std::fmt;
use std::panic::{Location, RefUnwindSafe, UnwindSafe};
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{Cmd, ConnectionLike, RedisResult, Value};

use crate::commit::wait_limit::WaitLimit;
use crate::error::any::Error;
use crate::error::checkout::CheckoutError;
use crate::pool::checkout::Checkout;
use crate::pool::line::Line;
use crate::pool::own_writes;
use crate::pool::router::Router;
use crate::pool::scope_origin::ScopeOrigin;
use crate::pool::scopes::ScopeCall;
use crate::pool::server_pool::PinnedLine;
use crate::pooled::atomic::AtomicRequest;
use crate::pooled::recent_replies;
use crate::pooled::request::Request;
use crate::pooled::send::send;
use crate::pooled::tag_errors::{self, CallKind};
use crate::protocol::cluster::route::Route;
use crate::sync::now::now;
use crate::transaction::handle::Transactional;
use crate::transaction::options::TransactionOptions;

/// The pooled handle: single commands, each on a connection borrowed for its own round trip (or
/// for one pipeline) only.
///
/// The handle is a [`redis::ConnectionLike`], so all methods of `redis::Commands` work on it. Its
/// own errors are carried inside a `redis::RedisError`; `Error::from(redis_error)` makes them typed
/// again. An error reply has its command and its known effect at the end of its text, in brackets.
/// So these are restored too. The server's own sentence is shown as
/// [`ServerError`](crate::error::ServerError) describes.
///
/// A command is refused by name, before it is sent, if it would change, end or occupy a shared
/// connection. Examples are `MULTI`, `WATCH`, `SELECT`, `AUTH`, `HELLO`, `SUBSCRIBE`, `MONITOR` and
/// `CLIENT REPLY`. This applies in upper and lower case, and inside pipelines. So `redis::transaction`
/// is refused: use [`Transactional::watch`](crate::Transactional::watch).
///
/// `pipe().atomic()`, MULTI to EXEC in one request, is run as a block of the transactional pool, as
/// [`Transactional::run`](crate::Transactional::run) does: repeated if it was not sent, and an
/// [`Error::Commit`] otherwise. Commands that fail at run time are an [`Error::Pipeline`], whose
/// [`applied`](Error::applied) is `Partly`.
///
/// A read on a dead connection is retried on another one. A write is sent only on a connection that
/// replied within `trust_window` or has just replied to PING. If the connection fails during the
/// write, the error is [`Error::Lost`] and the write is not sent again.
///
/// If no connection is free, or more reads are sent than there are connections, a read of one value
/// (`GET`, `HGET`, `EXISTS` and similar) may be batched: the next caller that gets a connection sends it
/// in one write with its own. See [`max_leaders`](crate::Builder::max_leaders).
///
/// A blocking command occupies its connection for its own timeout, which must not be 0.
/// [`SessionManager::close`](crate::SessionManager::close) ends it at once, with [`Error::Lost`].
/// If a checkout times out, its error lists the blocking command among the holders, with the place
/// that made its handle.
///
/// In a cluster each command goes to the master of its key's slot, and follows the redirect if the
/// slot has moved. A command without a key goes to one node. If Redis documents it for all masters,
/// it goes to every master, and the replies are merged. These commands are `PING`, `DBSIZE`,
/// `KEYS`, `FLUSHALL`, `FLUSHDB`, `SCRIPT LOAD`, `FUNCTION LOAD` and similar.
///
/// A pipeline is split by slot: commands on one slot keep their order, others may not. A command
/// with keys of several slots fails with [`Error::CrossSlot`]. `SCAN`, `RANDOMKEY`, `CONFIG SET`
/// and other commands whose reply differs by node are refused: connect to each node for these.
///
/// The handle is cheap to clone; give each thread a clone. It holds no connection, and dropping it
/// does nothing.
///
/// ```no_run
/// use rediscope::{SessionManager, prelude::*};
///
/// # fn main() -> Result<(), rediscope::Error> {
/// let mut db = SessionManager::connect("redis://127.0.0.1/")?.pooled();
/// let _: () = db.set("balance:alice", 100)?;
/// let alice: i64 = db.get("balance:alice")?;
/// # Ok(()) }
/// ```
///
/// A worker of a queue. A job stays in the worker's own list until its result is stored, so a job of a
/// worker that died can be put back. Each worker needs a connection of the pool.
///
/// ```no_run
/// # use rediscope::{SessionManager, TransactionOptions, prelude::*, redis::Direction::{Left, Right}};
/// # fn done(_job: &str) -> i64 { 0 }
/// fn work(sessions: &SessionManager, mine: &str) -> Result<(), rediscope::Error> {
///     let mut db = sessions.pooled();
///     let blocks = sessions.transactional().with(TransactionOptions::new().exactly_once());
///     loop {
///         let job: Option<String> = db.blmove("jobs", mine, Right, Left, 1.0)?;
///         let Some(job) = job else { continue };
///         let result = done(&job);
///         blocks.run(|tx| Ok((tx.lrem(mine, 1, &job), tx.hset("results", &job, result))))?;
///     }
/// }
/// ```
#[derive(Clone)]
pub struct Pooled {
    router: Router,
    /// The place that made the handle; it stands for the place of its commands.
    place: &'static Location<'static>,
    /// For whole transactions. `None`: the handle reads from replicas, and refuses other commands.
    transactional: Option<Arc<Transactional>>,
    wait: WaitLimit,
}

impl UnwindSafe for Pooled {}
impl RefUnwindSafe for Pooled {}

impl ConnectionLike for Pooled {
    fn req_packed_command(&mut self, cmd: &[u8]) -> RedisResult<Value> {
        let mut replies = self.request(cmd, 0, 1, CallKind::Single)?;
        Ok(replies.pop().unwrap_or(Value::Nil))
    }

    fn req_packed_commands(
        &mut self,
        cmd: &[u8],
        offset: usize,
        count: usize,
    ) -> RedisResult<Vec<Value>> {
        if let Some(block) = AtomicRequest::find(cmd, offset.saturating_add(count)) {
            return Ok(self.run(&block, offset)?);
        }
        Ok(self.request(cmd, offset, count, CallKind::Pipeline)?)
    }

    fn req_command(&mut self, cmd: &Cmd) -> RedisResult<Value> {
        self.req_packed_command(&cmd.get_packed_command())
    }

    fn get_db(&self) -> i64 {
        self.router.db()
    }

    /// Sends PING on one connection.
    fn check_connection(&mut self) -> bool {
        redis::cmd("PING").query::<String>(self).is_ok()
    }

    /// Always true: a closed connection is replaced at its next use.
    fn is_open(&self) -> bool {
        true
    }
}

impl Pooled {
    #[track_caller]
    pub(crate) fn new(router: Router, transactional: Arc<Transactional>) -> Self {
        let place = Location::caller();
        Self { router, place, transactional: Some(transactional), wait: WaitLimit::default() }
    }

    /// A handle that reads from replicas.
    #[track_caller]
    pub(crate) fn reading(router: Router) -> Self {
        let (place, wait) = (Location::caller(), WaitLimit::default());
        Self { router, place, transactional: None, wait }
    }

    /// Returns a handle whose calls wait for a connection for this time, in place of
    /// [`checkout_timeout`](crate::Builder::checkout_timeout): longer or shorter. The check of a connection
    /// that was idle counts too, so a call with less time than a round trip may fail.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use rediscope::{SessionManager, prelude::*};
    /// # fn main() -> Result<(), rediscope::Error> {
    /// # let sessions = SessionManager::connect("redis://127.0.0.1/")?;
    /// let hits: Option<i64> = sessions.pooled().within(Duration::from_millis(50)).get("hits")?;
    /// # Ok(()) }
    /// ```
    pub fn within(&self, wait: Duration) -> Self {
        let wait = WaitLimit { within: Some(wait), ..self.wait };
        Self { wait, ..self.clone() }
    }

    /// Returns a handle whose calls wait for no connection, and send nothing again, after this instant. What
    /// was sent is not interrupted: a call returns its reply, after `response_timeout` at the latest, and
    /// a blocking command after its own timeout.
    pub fn deadline(&self, deadline: Instant) -> Self {
        let wait = WaitLimit { until: Some(deadline), ..self.wait };
        Self { wait, ..self.clone() }
    }

    /// Passes a plain redis-rs connection to `f`, for the commands that the handle refuses. The
    /// connection is opened for this call, in the place of one of the pool's, and always closed
    /// afterwards. In a cluster it leads to any master.
    ///
    /// # Errors
    /// [`Error::Checkout`] if no connection was available. While `f` runs, the connection cannot be
    /// reclaimed, however long that takes.
    #[track_caller]
    pub fn with_raw<R>(&self, f: impl FnOnce(&mut redis::Connection) -> R) -> Result<R, Error> {
        self.router.here()?;
        let started = Instant::now();
        let deadline = self.wait.deadline(self.router.settings());
        let mut checkout = self.raw_line(Location::caller(), deadline)?;
        let pool = checkout.pool().clone();
        let connection = checkout.current().ok_or(CheckoutError::Closed)?;
        let raw = connection.open_raw(pool.endpoint(), pool.settings(), deadline);
        let waited = started.elapsed();
        let raw = raw.map_err(|source| CheckoutError::Connect { waited, source })?;
        // The replies of that connection are not the handle's, and neither are its errors.
        recent_replies::clear();
        let result = f(raw);
        recent_replies::clear();
        Ok(result)
    }

    /// Takes a connection for a scope of one call. Its drop returns the connection before the permit.
    fn raw_line(
        &self,
        place: &'static Location<'static>,
        deadline: Instant,
    ) -> Result<ScopeCall<Checkout>, Error> {
        let owner = ScopeOrigin { name: None, place, is_closure: true };
        let pin = now(self.router.pin(&Route::default(), &owner, deadline, None))?;
        let mut checkout = pin.last_call::<Error>()?;
        while !checkout.has_connection() {
            now(checkout.connect(deadline))?;
        }
        Ok(checkout)
    }

    /// Runs a whole transaction.
    fn run(&self, block: &AtomicRequest<'_>, offset: usize) -> Result<Vec<Value>, Error> {
        let Some(transactional) = &self.transactional else {
            return Err(AtomicRequest::refused_by_replicas());
        };
        let transactional = transactional.with(TransactionOptions::waiting(self.wait));
        let run = transactional.run_at(self.place, |tx| Ok(block.queue(tx)));
        block.replies(run, offset, self.router.settings().server_messages)
    }

    fn request(
        &self,
        bytes: &[u8],
        offset: usize,
        count: usize,
        call: CallKind,
    ) -> Result<Vec<Value>, Error> {
        self.router.here()?;
        let replies = offset.saturating_add(count);
        let request = Request::parse(bytes, replies, self.place)?;
        if self.transactional.is_none() {
            request.ensure_read()?;
        }
        own_writes::record(self.router.settings(), bytes);
        let sent = send(&self.router, (&request, self.place), (bytes, replies), self.wait, None);
        let mut sent = now(sent)?;
        let full = self.router.settings().server_messages;
        tag_errors::tag_errors(&request, &mut sent, (bytes, offset), call, full);
        Ok(sent.replies)
    }
}

impl fmt::Debug for Pooled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pooled").field("router", &self.router).finish()
    }
}
