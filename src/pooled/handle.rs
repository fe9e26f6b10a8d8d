//! The pooled handle: single commands, each on a connection borrowed for its own round trip.
//!
//! Never: a command that would leave something behind on a connection others use. Never: a write
//! sent twice.

use std::fmt;
use std::panic::{Location, RefUnwindSafe, UnwindSafe};
use std::time::Instant;

use redis::{Cmd, ConnectionLike, RedisResult, Value};

use crate::error::any::Error;
use crate::error::checkout::CheckoutError;
use crate::pool::router::Router;
use crate::pool::scopes::ScopeOrigin;
use crate::pooled::request::Request;
use crate::pooled::tag_errors::{self, Call};
use crate::pooled::{fan_out, recent_replies};
use crate::protocol::cluster::route::Route;

/// The pooled handle: single commands, each on a connection borrowed for its own round trip (or
/// for one pipeline) only.
///
/// It is a [`redis::ConnectionLike`], so the whole `redis::Commands` vocabulary works on it. Its
/// own errors travel inside a `redis::RedisError` and come back typed:
/// `Error::from(redis_error)`. An error reply has its command and what is known of its effect at the
/// end of its text, in brackets, so that these come back too; the server's own sentence is shown as
/// [`ServerError`](crate::ServerError) describes.
///
/// Refused by name before anything is sent, in any case and inside pipelines: what would change,
/// end or occupy a connection that others use (`MULTI`, `WATCH`, `SELECT`, `AUTH`, `HELLO`,
/// `SUBSCRIBE`, `MONITOR`, `CLIENT REPLY`, …). So `pipe().atomic()` and `redis::transaction` are
/// refused: use [`Transactional`](crate::Transactional).
///
/// A read that meets a dead connection is asked again on another one. A write is asked on a
/// connection that was heard of within `trust_window` or has just answered PING; if that fails
/// under it, the error says so ([`Error::Lost`]) and it is not sent again.
///
/// Reads of one value (`GET`, `HGET`, `EXISTS` and their like) that find no free connection are
/// sent along by the next caller that gets one, in one write.
///
/// A blocking command waits on its connection for its own timeout, which must not be 0.
/// [`SessionManager::close`](crate::SessionManager::close) ends it at once, with [`Error::Lost`]; a
/// checkout that times out names it among the holders, with the place where its handle was made.
///
/// In a cluster each command goes to the master of its key's slot, and on from there where the slot
/// has moved. Commands without a key go to one node, or to every master where Redis documents them
/// so (`PING`, `DBSIZE`, `KEYS`, `FLUSHALL`, `FLUSHDB`, `SCRIPT LOAD`, `FUNCTION LOAD` and their
/// like), and their answers become one. A pipeline is parted by slot: commands on one slot keep their
/// order, others may not. A command with keys of several slots is [`Error::CrossSlot`]; `SCAN`,
/// `RANDOMKEY`, `CONFIG SET` and what else has an answer for each node are refused: connect to each.
///
/// Cheap to clone, and shared between threads as clones. It holds no connection; dropping it does
/// nothing.
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
#[derive(Clone)]
pub struct Pooled {
    nodes: Router,
    /// Where it was made, which is what is known of a command's place.
    place: &'static Location<'static>,
    /// What is not a read is refused.
    reads_only: bool,
}

impl UnwindSafe for Pooled {}
impl RefUnwindSafe for Pooled {}

impl ConnectionLike for Pooled {
    fn req_packed_command(&mut self, cmd: &[u8]) -> RedisResult<Value> {
        let mut replies = self.request(cmd, 0, 1, Call::Single)?;
        Ok(replies.pop().unwrap_or(Value::Nil))
    }

    fn req_packed_commands(
        &mut self,
        cmd: &[u8],
        offset: usize,
        count: usize,
    ) -> RedisResult<Vec<Value>> {
        Ok(self.request(cmd, offset, count, Call::Pipeline)?)
    }

    fn req_command(&mut self, cmd: &Cmd) -> RedisResult<Value> {
        self.req_packed_command(&cmd.get_packed_command())
    }

    fn get_db(&self) -> i64 {
        self.nodes.db()
    }

    /// Asks the server, on one connection.
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
    pub(crate) fn new(nodes: Router) -> Self {
        Self { nodes, place: Location::caller(), reads_only: false }
    }

    /// For replicas.
    #[track_caller]
    pub(crate) fn reading(nodes: Router) -> Self {
        Self { nodes, place: Location::caller(), reads_only: true }
    }

    /// Hands out a connection as redis-rs has it, for what the handle refuses. It is opened for
    /// this call, in the place of one of the pool's, and closed afterwards, whatever was done with
    /// it. In a cluster it is one to any master.
    ///
    /// # Errors
    /// [`Error::Checkout`] where no connection was to be had. While `f` runs, the connection
    /// cannot be taken back, however long that is.
    #[track_caller]
    pub fn with_raw<R>(&self, f: impl FnOnce(&mut redis::Connection) -> R) -> Result<R, Error> {
        self.nodes.here()?;
        let owner = ScopeOrigin { name: None, place: Location::caller(), is_closure: true };
        let started = Instant::now();
        let deadline = started + self.nodes.settings().checkout_timeout;
        let pin = self.nodes.pin(&Route::default(), &owner, deadline)?;
        pin.end(|checkout| {
            let pool = checkout.pool().clone();
            let raw = checkout.connection(deadline)?.open_raw(pool.endpoint(), pool.settings());
            let waited = started.elapsed();
            let raw = raw.map_err(|source| CheckoutError::Connect { waited, source })?;
            // Its answers are not the handle's, and neither are its errors.
            recent_replies::clear();
            let result = f(raw);
            recent_replies::clear();
            Ok(result)
        })?
    }

    fn request(
        &self,
        bytes: &[u8],
        offset: usize,
        count: usize,
        call: Call,
    ) -> Result<Vec<Value>, Error> {
        self.nodes.here()?;
        let request = Request::parse(bytes, offset + count)?.of_handle(self.place);
        let mut replies = self.replies(&request, bytes, offset, count)?;
        let full = self.nodes.settings().server_messages;
        tag_errors::tag_errors(&request, &mut replies, (bytes, offset), call, full);
        Ok(replies)
    }

    fn replies(
        &self,
        request: &Request,
        bytes: &[u8],
        offset: usize,
        count: usize,
    ) -> Result<Vec<Value>, Error> {
        if self.reads_only && !request.read_only {
            return Err(Error::Refused {
                command: request.name.clone(),
                hint: "this handle reads from replicas: use SessionManager::pooled",
            });
        }
        if self.nodes.is_cluster() {
            let mut replies = fan_out::request(&self.nodes, self.place, bytes)?;
            replies.drain(..offset.min(replies.len()));
            return Ok(replies);
        }
        let checkout = Instant::now() + self.nodes.settings().checkout_timeout;
        request.ask(&self.nodes, &Route::default(), (bytes, offset, count), checkout)
    }
}

impl fmt::Debug for Pooled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pooled").field("nodes", &self.nodes).finish()
    }
}
