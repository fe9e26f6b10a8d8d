//! The pooled handle: single commands, each on a connection borrowed for its own round trip.
//!
//! Never: a command that would leave something behind on a connection others use. Never: a write
//! sent twice.

use std::fmt;
use std::panic::{Location, RefUnwindSafe, UnwindSafe};
use std::time::{Duration, Instant};

use redis::{Cmd, ConnectionLike, RedisResult, Value};

use crate::connection::deadline::Deadline;
use crate::connection::group::lead;
use crate::connection::pool::{Joined, Lease, Pool, Repeats};
use crate::connection::registry::Owner;
use crate::error::{Applied, CheckoutError, Error, LinkError};
use crate::wire::command::{self, Blocking, Place, Requests};
use crate::wire::group::{self, Broken, Job, What};
use crate::wire::reply::Reply;
use crate::wire::state::Expect;

/// The pooled handle: single commands, each on a connection borrowed for its own round trip (or
/// for one pipeline) only.
///
/// It is a [`redis::ConnectionLike`], so the whole `redis::Commands` vocabulary works on it. Its
/// own errors travel inside a `redis::RedisError` and come back typed:
/// `Error::from(redis_error)`.
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
/// sent along by the next caller who gets one, in one write.
///
/// A blocking command waits on its connection for its own timeout, which must not be 0.
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
    pool: Pool,
}

impl UnwindSafe for Pooled {}
impl RefUnwindSafe for Pooled {}

impl ConnectionLike for Pooled {
    fn req_packed_command(&mut self, cmd: &[u8]) -> RedisResult<Value> {
        let mut replies = self.request(cmd, 0, 1)?;
        Ok(replies.pop().unwrap_or(Value::Nil))
    }

    fn req_packed_commands(
        &mut self,
        cmd: &[u8],
        offset: usize,
        count: usize,
    ) -> RedisResult<Vec<Value>> {
        Ok(self.request(cmd, offset, count)?)
    }

    fn req_command(&mut self, cmd: &Cmd) -> RedisResult<Value> {
        self.req_packed_command(&cmd.get_packed_command())
    }

    fn get_db(&self) -> i64 {
        self.pool.endpoint().db()
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
    pub(crate) fn new(pool: Pool) -> Self {
        Self { pool }
    }

    /// Hands out a connection as redis-rs has it, for what the handle refuses. It is opened for
    /// this call, in the place of one of the pool's, and closed afterwards, whatever was done with
    /// it.
    ///
    /// # Errors
    /// [`Error::Checkout`] where no connection was to be had. While `f` runs, the connection
    /// cannot be taken back, however long that is.
    #[track_caller]
    pub fn with_raw<R>(&self, f: impl FnOnce(&mut redis::Connection) -> R) -> Result<R, Error> {
        let owner = Owner { name: None, place: Location::caller(), is_closure: true };
        let started = Instant::now();
        let deadline = started + self.pool.settings().checkout_timeout;
        let pin = self.pool.pin(owner, deadline)?;
        pin.end(|lease| {
            let (endpoint, settings) = (self.pool.endpoint(), self.pool.settings());
            let raw = lease.link(deadline)?.raw(endpoint, settings);
            let waited = started.elapsed();
            Ok(f(raw.map_err(|source| CheckoutError::Connect { waited, source })?))
        })?
    }

    fn request(&self, bytes: &[u8], offset: usize, count: usize) -> Result<Vec<Value>, Error> {
        let request = Request::judge(bytes, offset + count)?;
        let settings = self.pool.settings();
        let checkout = Instant::now() + settings.checkout_timeout;
        let mut repeats = Repeats::new(settings.max_size);
        let mut lease = None;
        while request.travels && lease.is_none() {
            let job = || Job { bytes: bytes.to_vec(), what: What::Read };
            let settled = match self.pool.join(checkout, job)? {
                Joined::Alone(alone) => {
                    lease = Some(alone);
                    break;
                }
                Joined::Lead(mut leading, own) => {
                    leading.answering(checkout)?;
                    lead(leading, &own)
                }
                Joined::Settled(settled) => settled,
            };
            let Some(Broken { cause, .. }) = settled.broken else {
                return Ok(settled.replies.into_iter().map(Reply::into_value).collect());
            };
            if !repeats.allow(true, &cause) || Instant::now() >= checkout {
                return Err(Error::Lost {
                    during: request.name,
                    applied: Applied::No,
                    source: cause,
                });
            }
            tracing::debug!(%cause, "asked again on another connection");
        }
        let mut lease = match lease {
            Some(lease) => lease,
            None => self.pool.lease(checkout)?,
        };
        loop {
            if !request.read_only {
                lease.answering(checkout)?;
            }
            lease.link(checkout)?;
            let trusted = lease.is_trusted();
            let deadline = Deadline::after(settings.response_timeout + request.blocks_for);
            match ask(&mut lease, bytes, offset, count, deadline, checkout) {
                Ok(replies) => {
                    if !request.read_only
                        && !matches!(replies.first(), Some(Value::ServerError(_)))
                        && let Some(link) = lease.current()
                    {
                        link.wrote();
                    }
                    for value in &replies {
                        if let Value::ServerError(error) = value {
                            lease.heed(error.code());
                        }
                    }
                    return Ok(replies);
                }
                Err(Failed::Checkout(error)) => return Err(error),
                Err(Failed::Lost { sent, cause }) => {
                    lease.found_dead(&cause);
                    // Reads apply nothing, and half a command is none. Of a pipeline that was cut
                    // short the first commands may have arrived whole.
                    let harmless = request.read_only || (!sent && request.commands == 1);
                    let again = harmless && repeats.allow(trusted, &cause);
                    if !again || Instant::now() >= checkout {
                        let applied = if harmless { Applied::No } else { Applied::Unknown };
                        let during = request.name;
                        return Err(Error::Lost { during, applied, source: cause });
                    }
                    tracing::debug!(%cause, "asked again on another connection");
                }
            }
        }
    }
}

/// What is to be sent, judged by the names of its commands.
struct Request {
    /// The first command's name, for errors.
    name: String,
    commands: usize,
    read_only: bool,
    /// It may be sent along with those of others.
    travels: bool,
    blocks_for: Duration,
}

impl Request {
    fn judge(bytes: &[u8], replies: usize) -> Result<Self, Error> {
        let mut request = Self {
            name: String::new(),
            commands: 0,
            read_only: true,
            travels: false,
            blocks_for: Duration::ZERO,
        };
        for args in Requests::new(bytes) {
            let Ok(args) = args else {
                return Err(Error::refused("a request that is not RESP".to_owned()));
            };
            let (name, sub) = (args.first().copied().unwrap_or_default(), args.get(1).copied());
            if request.name.is_empty() {
                request.name = command::printable(name);
            }
            if command::is_refused(name, sub, Place::Alone) {
                return Err(Error::refused(command::printable(name)));
            }
            match command::blocking(&args) {
                Blocking::No => {}
                Blocking::For(timeout) => request.blocks_for += timeout,
                Blocking::Forever => {
                    return Err(Error::Refused {
                        command: command::printable(name),
                        hint: "it would occupy a shared connection for ever; give it a timeout",
                    });
                }
            }
            request.commands += 1;
            request.read_only &= command::is_read_only(name, sub);
        }
        request.travels = request.read_only
            && request.commands == 1
            && group::may_read_along(&request.name)
            && group::is_small(1, bytes.len());
        if request.commands == 0 {
            return Err(Error::Refused {
                command: "a request without a command".to_owned(),
                hint: "add one to the pipeline",
            });
        }
        // A reply that is not read would be the next borrower's.
        if request.commands != replies {
            return Err(Error::Refused {
                command: format!(
                    "a request of {} commands for {replies} replies",
                    request.commands
                ),
                hint: "ask for one reply a command",
            });
        }
        Ok(request)
    }
}

enum Failed {
    Checkout(Error),
    Lost { sent: bool, cause: LinkError },
}

fn ask(
    lease: &mut Lease,
    bytes: &[u8],
    offset: usize,
    count: usize,
    deadline: Deadline,
    checkout: Instant,
) -> Result<Vec<Value>, Failed> {
    let link = lease.link(checkout).map_err(Failed::Checkout)?;
    let expected = [(Expect::Plain, (offset + count) as u32)];
    link.send(bytes, &expected, deadline).map_err(|cause| Failed::Lost { sent: false, cause })?;
    let mut replies = Vec::with_capacity(count);
    for nth in 0..offset + count {
        let value = link.value(deadline).map_err(|cause| Failed::Lost { sent: true, cause })?;
        if nth >= offset {
            replies.push(value);
        }
    }
    link.has_answered();
    Ok(replies)
}

impl fmt::Debug for Pooled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pooled").field("pool", &self.pool).finish()
    }
}
