//! The pooled handle of tasks: single commands, each on a connection borrowed for its own round trip.
//!
//! The handle refuses a command that would leave state on a shared connection, and sends no write
//! twice.

use std::fmt;
use std::panic::{Location, RefUnwindSafe, UnwindSafe};

use redis::aio::ConnectionLike;
use redis::{Cmd, Pipeline, RedisFuture, Value};

use crate::error::any::Error;
use crate::pool::router::Router;
use crate::pool::tasks::pool::TaskPool;
use crate::pooled::request::Request;
use crate::pooled::send::send;
use crate::pooled::tag_errors::{self, CallKind};

/// The pooled handle of tasks: single commands, each on a connection borrowed for its own round trip (or
/// for one pipeline) only.
///
/// The handle is a [`redis::aio::ConnectionLike`], so all methods of `redis::AsyncCommands` work on it.
/// Its errors, the commands that it refuses by name and the commands that it sends again are those of
/// [the pooled handle of threads](crate::Pooled).
///
/// A small command of constant work, such as `GET`, `SET` or `INCR`, shares a connection with the requests
/// of other tasks. Every other command, and every pipeline, has a connection for its own round trip.
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
/// use rediscope::redis::AsyncCommands;
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
    /// Whether commands that are not reads are refused.
    reads_only: bool,
}

impl UnwindSafe for Pooled {}
impl RefUnwindSafe for Pooled {}

impl ConnectionLike for Pooled {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            let bytes = cmd.get_packed_command();
            let mut replies = self.request(&bytes, 0, 1, CallKind::Single).await?;
            Ok(replies.pop().unwrap_or(Value::Nil))
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            let bytes = pipeline.get_packed_pipeline();
            Ok(self.request(&bytes, offset, count, CallKind::Pipeline).await?)
        })
    }

    fn get_db(&self) -> i64 {
        self.router.db()
    }
}

impl Pooled {
    pub(crate) fn new(router: Router<TaskPool>, place: &'static Location<'static>) -> Self {
        Self { router, place, reads_only: false }
    }

    /// A handle that reads from replicas.
    pub(crate) fn reading(router: Router<TaskPool>, place: &'static Location<'static>) -> Self {
        Self { router, place, reads_only: true }
    }

    async fn request(
        &self,
        bytes: &[u8],
        offset: usize,
        count: usize,
        call: CallKind,
    ) -> Result<Vec<Value>, Error> {
        self.router.here()?;
        let request = Request::parse(bytes, offset + count, self.place)?;
        if self.reads_only {
            request.ensure_read()?;
        }
        let sent = send(&self.router, (&request, self.place), (bytes, offset, count));
        let mut replies = sent.await?;
        let full = self.router.settings().server_messages;
        tag_errors::tag_errors(&request, &mut replies, (bytes, offset), call, full);
        Ok(replies)
    }
}

impl fmt::Debug for Pooled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pooled").field("router", &self.router).finish()
    }
}
