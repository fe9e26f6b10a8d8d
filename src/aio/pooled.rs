//! The pooled handle of tasks: single commands, each on a connection borrowed for its own round trip.
//!
//! The handle refuses a command that would leave state on a shared connection, and sends no write
//! twice.

use std::fmt;
use std::panic::{Location, RefUnwindSafe, UnwindSafe};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use redis::aio::ConnectionLike;
use redis::{Arg, Cmd, Pipeline, RedisFuture, RedisResult, Value};

use crate::aio::handle::Transactional;
use crate::commit::wait_limit::WaitLimit;
use crate::error::any::Error;
use crate::pool::batch_request::BatchRequest;
use crate::pool::own_writes;
use crate::pool::router::Router;
use crate::pool::tasks::lane::LaneCall;
use crate::pool::tasks::lanes::KnownLanes;
use crate::pool::tasks::pool::TaskPool;
use crate::pooled::atomic::AtomicRequest;
use crate::pooled::request::{Carried, Request, batch_kind, reply};
use crate::pooled::send::send;
use crate::pooled::tag_errors::{self, CallKind};
use crate::protocol::command::table::{self, Command};
use crate::protocol::resp::encode;
use crate::transaction::options::TransactionOptions;

/// The pooled handle of tasks: single commands, each on a connection borrowed for its own round trip (or
/// for one pipeline) only.
///
/// The handle is a [`redis::aio::ConnectionLike`], so all methods of `redis::AsyncCommands` work on it; the
/// [prelude](crate::prelude) brings that trait. Its errors, the commands that it refuses by name and the
/// commands that it sends again are those of [the pooled handle of threads](crate::Pooled).
///
/// A small command of constant work, such as `GET`, `SET` or `INCR`, shares a connection with the requests
/// of other tasks. Every other command, and every pipeline, has a connection for its own round trip.
/// `pipe().atomic()` is run as a block of [`Transactional::run`](crate::aio::Transactional::run).
///
/// If the future of a command is dropped before it was sent, it is never sent. A later drop may find it
/// sent: then its reply is read and thrown away, and the connection serves the next caller. On another
/// connection, a command of the same task may overtake it.
///
/// A blocking command occupies its connection for its own timeout, which must not be 0.
/// [`SessionManager::close`](crate::aio::SessionManager::close) ends it at once, with [`Error::Lost`].
///
/// The handle is cheap to clone; give each task a clone. It holds no connection, and dropping it does
/// nothing.
///
/// ```no_run
/// use rediscope::aio::SessionManager;
/// use rediscope::prelude::*;
///
/// # async fn example() -> Result<(), rediscope::Error> {
/// let mut db = SessionManager::connect("redis://127.0.0.1/")?.pooled();
/// let _: () = db.set("balance:alice", 100).await?;
/// let alice: i64 = db.get("balance:alice").await?;
/// # let _ = alice; Ok(()) }
/// ```
#[derive(Clone)]
pub struct Pooled {
    router: Router<TaskPool>,
    /// The place that made the handle; it stands for the place of its commands.
    place: &'static Location<'static>,
    /// For whole transactions. `None`: the handle reads from replicas, and refuses other commands.
    transactional: Option<Arc<Transactional>>,
    lanes: KnownLanes,
    wait: WaitLimit,
}

impl UnwindSafe for Pooled {}
impl RefUnwindSafe for Pooled {}

impl ConnectionLike for Pooled {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        let Self { router, place, transactional, lanes, wait } = self;
        let transactional = transactional.as_deref();
        let handle = Handle { router, place, transactional, wait: *wait };
        Box::pin(SingleCommand { handle, lanes, cmd, state: State::New })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        let Self { router, place, transactional, wait, .. } = self;
        let transactional = transactional.as_deref();
        let handle = Handle { router, place, transactional, wait: *wait };
        Box::pin(async move {
            let bytes = pipeline.get_packed_pipeline();
            if let Some(block) = AtomicRequest::find(&bytes, offset.saturating_add(count)) {
                return Ok(handle.run(&block, offset).await?);
            }
            let all = (&*bytes, offset, count);
            Ok(handle.request(all, CallKind::Pipeline, None).await?)
        })
    }

    fn get_db(&self) -> i64 {
        self.router.db()
    }
}

impl Pooled {
    pub(crate) fn new(
        router: Router<TaskPool>,
        place: &'static Location<'static>,
        transactional: Arc<Transactional>,
    ) -> Self {
        let (lanes, wait) = (KnownLanes::default(), WaitLimit::default());
        Self { router, place, transactional: Some(transactional), lanes, wait }
    }

    /// A handle that reads from replicas.
    pub(crate) fn reading(router: Router<TaskPool>, place: &'static Location<'static>) -> Self {
        let (lanes, wait) = (KnownLanes::default(), WaitLimit::default());
        Self { router, place, transactional: None, lanes, wait }
    }

    /// Returns a handle whose calls wait for a connection for this time, in place of
    /// [`checkout_timeout`](crate::Builder::checkout_timeout): longer or shorter. The check of a connection
    /// that was idle counts too, so a call with less time than a round trip may fail.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use rediscope::redis::AsyncCommands;
    /// # async fn example(db: rediscope::aio::Pooled) -> Result<(), rediscope::Error> {
    /// let hits: Option<i64> = db.within(Duration::from_millis(50)).get("hits").await?;
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
}

/// What a call needs of its handle.
#[derive(Clone, Copy)]
struct Handle<'a> {
    router: &'a Router<TaskPool>,
    place: &'static Location<'static>,
    transactional: Option<&'a Transactional>,
    wait: WaitLimit,
}

impl Handle<'_> {
    /// Runs a whole transaction.
    async fn run(self, block: &AtomicRequest<'_>, offset: usize) -> Result<Vec<Value>, Error> {
        let Some(transactional) = self.transactional else {
            return Err(AtomicRequest::refused_by_replicas());
        };
        let transactional = transactional.with(TransactionOptions::waiting(self.wait));
        let run = transactional.run_at(self.place, |tx| Ok::<_, Error>(block.queue(tx))).await;
        block.replies(run, offset, self.router.settings().server_messages)
    }

    /// Sends a request. `carried`: what became of it on a lane.
    async fn request(
        self,
        (bytes, offset, count): (&[u8], usize, usize),
        call: CallKind,
        carried: Option<Box<Carried>>,
    ) -> Result<Vec<Value>, Error> {
        let Self { router, place, transactional, wait } = self;
        router.here()?;
        let replies = offset.saturating_add(count);
        let request = Request::parse(bytes, replies, place)?;
        if transactional.is_none() {
            request.ensure_read()?;
        }
        own_writes::record(router.settings(), bytes);
        let sent = send(router, (&request, place), (bytes, replies), wait, carried);
        let mut sent = sent.await?;
        let full = router.settings().server_messages;
        tag_errors::tag_errors(&request, &mut sent, (bytes, offset), call, full);
        Ok(sent.replies)
    }
}

/// The call of a single command. If it can, a lane carries it, and the future is small and boxes nothing.
///
/// Every other call, and all that can go wrong, is decided by [`Handle::request`].
struct SingleCommand<'a> {
    handle: Handle<'a>,
    lanes: &'a mut KnownLanes,
    cmd: &'a Cmd,
    state: State<'a>,
}

enum State<'a> {
    New,
    InLane { row: &'static Command, call: LaneCall },
    Other(Pin<Box<dyn Future<Output = RedisResult<Value>> + Send + 'a>>),
}

impl<'a> SingleCommand<'a> {
    /// Submits the command to a lane. `None`: it is not for a lane, or none can take it at once.
    fn submit(&mut self, context: &Context<'_>) -> Option<State<'a>> {
        if !self.handle.wait.is_none() {
            return None;
        }
        let Some(Arg::Simple(name)) = self.cmd.args_iter().next() else { return None };
        let row = table::find(name)?;
        if self.handle.transactional.is_none() && !row.has(table::READ) {
            return None;
        }
        // Of a forked child, and of a cluster, `request` decides.
        let pool = self.handle.router.only_pool().ok()??;
        let bytes = encode::packed(self.cmd)?;
        let kind = batch_kind(row, bytes.len())?;
        own_writes::record(self.handle.router.settings(), &bytes);
        let call = pool.try_submit(Some(self.lanes), context, || BatchRequest::new(bytes, kind))?;
        Some(State::InLane { row, call })
    }

    /// The call as [`Handle::request`] decides it.
    #[cold]
    #[inline(never)]
    fn other(&self, carried: Option<Box<Carried>>) -> State<'a> {
        let Self { handle, cmd, .. } = *self;
        State::Other(Box::pin(async move {
            let bytes = cmd.get_packed_command();
            let call = (&*bytes, 0, 1);
            let mut replies = handle.request(call, CallKind::Single, carried).await?;
            Ok(replies.pop().unwrap_or(Value::Nil))
        }))
    }
}

impl Future for SingleCommand<'_> {
    type Output = RedisResult<Value>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            let carried = match &mut this.state {
                State::New => match this.submit(context) {
                    Some(state) => {
                        this.state = state;
                        return Poll::Pending;
                    }
                    None => None,
                },
                State::Other(call) => return call.as_mut().poll(context),
                State::InLane { row, call } => {
                    let row = *row;
                    let (response, _) = ready!(call.poll(context));
                    let response = response.map_err(Error::from)?;
                    match reply(row.has(table::READ), response) {
                        Ok(mut value) => {
                            let full = this.handle.router.settings().server_messages;
                            tag_errors::tag_error(row, this.cmd, &mut value, full);
                            return Poll::Ready(Ok(value));
                        }
                        Err(response) => {
                            Some(Box::new(Carried { response, deadline: call.deadline() }))
                        }
                    }
                }
            };
            this.state = this.other(carried);
        }
    }
}

impl fmt::Debug for Pooled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pooled").field("router", &self.router).finish()
    }
}
