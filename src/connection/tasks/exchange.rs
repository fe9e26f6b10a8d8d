//! What a caller and the connection's task share: the message to be sent, its replies, and the end of
//! the connection.

use std::collections::VecDeque;
use std::mem;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::task::Waker;
use std::time::Instant;

use tokio::runtime;

use crate::connection::tasks::socket::TaskSocket;
use crate::connection::transport::closed;
use crate::error::connection::ConnectionError;
use crate::process::current::Process;
use crate::protocol::resp::decode::SharedArrays;
use crate::protocol::resp::reply::Reply;
use crate::sync::caught::wake;
use crate::sync::lock;

/// A future that the connection's task runs beside its socket.
pub(super) type Adopted = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What a caller and the connection's task share.
pub(super) struct Shared {
    exchange: Mutex<Exchange>,
    /// Wakes the task; set by its first poll.
    task: OnceLock<Waker>,
    /// Whether the connection is closed, or is about to be.
    is_closed: AtomicBool,
    /// Whether the server has sent a push while no reply was awaited.
    has_pushes: AtomicBool,
    /// Whether the task has read the first part of a push.
    has_half: AtomicBool,
    pub(super) socket: Weak<TaskSocket>,
    pub(super) runtime: runtime::Id,
    process: Process,
}

/// One message, its replies, and what the caller asks of the task.
pub(super) struct Exchange {
    /// The message that the task has not taken yet.
    pub(super) bytes: Vec<u8>,
    /// The number of its replies; `None`: the task has taken it.
    pub(super) message: Option<u64>,
    /// Number of its first replies that are passed to the caller without the others.
    pub(super) own: Option<u64>,
    pub(super) deadline: Instant,
    /// Whether replies of the message are still to come.
    pub(super) awaits: bool,
    /// All replies of the message, or those that arrived before the failure.
    pub(super) replies: VecDeque<Reply>,
    /// Why the connection has ended.
    pub(super) failure: Option<Failure>,
    pub(super) caller: Option<Waker>,
    pub(super) max_reply_bytes: Option<usize>,
    /// If the first replies to the message are for several callers: their parts, and their number.
    pub(super) shared_replies: Option<(SharedArrays, u64)>,
    /// Whether bytes have arrived of which the runtime may not know yet.
    pub(super) has_come: bool,
    /// Whether the server sends messages at any time, each of which is a reply.
    pub(super) streams: bool,
    /// Whether the connection is to be closed.
    pub(super) closes: bool,
    pub(super) adopted: Vec<Adopted>,
    /// Whether the task polls its adopted futures, and whether they have asked for something.
    pub(super) polls_adopted: bool,
    pub(super) asked: bool,
    pub(super) has_ended: bool,
}

/// Why a connection has ended.
#[derive(Clone)]
pub(super) struct Failure {
    pub(super) error: ConnectionError,
    /// The number of bytes of the last message that may have been sent; `None`: all of them.
    pub(super) unsent: Option<usize>,
    /// Whether the next reply could not be read.
    pub(super) is_of_reply: bool,
    /// Length of the array whose end could not be read.
    pub(super) array: Option<usize>,
}

impl Failure {
    pub(super) fn new(error: ConnectionError) -> Self {
        Self { error, unsent: None, is_of_reply: false, array: None }
    }
}

impl Shared {
    pub(super) fn new(socket: &Arc<TaskSocket>, runtime: runtime::Id) -> Self {
        let exchange = Exchange {
            bytes: Vec::new(),
            message: None,
            own: None,
            deadline: Instant::now(),
            awaits: false,
            replies: VecDeque::new(),
            failure: None,
            caller: None,
            max_reply_bytes: None,
            shared_replies: None,
            has_come: false,
            streams: false,
            closes: false,
            adopted: Vec::new(),
            polls_adopted: false,
            asked: false,
            has_ended: false,
        };
        Self {
            exchange: Mutex::new(exchange),
            task: OnceLock::new(),
            is_closed: AtomicBool::new(false),
            has_pushes: AtomicBool::new(false),
            has_half: AtomicBool::new(false),
            socket: Arc::downgrade(socket),
            runtime,
            process: Process::here(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Exchange> {
        lock(&self.exchange)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    pub(super) fn has_pushes(&self) -> bool {
        self.has_pushes.load(Ordering::Relaxed)
    }

    pub(super) fn on_push(&self) {
        self.has_pushes.store(true, Ordering::Relaxed);
    }

    /// Whether the next bytes are the rest of a push.
    pub(super) fn has_half(&self) -> bool {
        self.has_half.load(Ordering::Relaxed)
    }

    pub(super) fn set_half(&self, has_half: bool) {
        self.has_half.store(has_half, Ordering::Relaxed);
    }

    /// Records that the connection is about to be closed, before other callers see the socket again.
    pub(super) fn mark_closed(&self) {
        self.is_closed.store(true, Ordering::Release);
    }

    /// Records the task that polls the connection.
    pub(super) fn polled_by(&self, waker: &Waker) {
        self.task.get_or_init(|| waker.clone());
    }

    /// Wakes the task after a change of `exchange`, unless the task itself made it, and sees it.
    pub(super) fn wake_after(&self, mut exchange: MutexGuard<'_, Exchange>) {
        if exchange.polls_adopted {
            exchange.asked = true;
            return;
        }
        drop(exchange);
        // Its first poll sees every change before it.
        if let Some(task) = self.task.get() {
            task.wake_by_ref();
        }
    }

    /// Has the task close the connection. Returns false in a forked child: the task is the parent's,
    /// and any lock may be held for ever.
    pub(super) fn close(&self) -> bool {
        self.is_closed.store(true, Ordering::Release);
        if self.process.is_other_process() {
            return false;
        }
        let mut exchange = self.lock();
        if !mem::replace(&mut exchange.closes, true) {
            self.wake_after(exchange);
        }
        true
    }

    /// Records why the connection has ended, and wakes the caller.
    pub(super) fn fail(&self, mut failure: Failure, replies: &mut VecDeque<Reply>) {
        self.is_closed.store(true, Ordering::Release);
        let mut exchange = self.lock();
        if exchange.failure.is_some() {
            return;
        }
        if exchange.message.take().is_some() {
            failure.unsent = Some(0);
        }
        exchange.replies.append(replies);
        exchange.failure = Some(failure);
        exchange.awaits = false;
        let caller = exchange.caller.take();
        drop(exchange);
        caller.into_iter().for_each(wake);
    }

    /// Records that the task has ended, and wakes the caller.
    pub(super) fn end(&self) {
        self.fail(Failure::new(closed()), &mut VecDeque::new());
        let mut exchange = self.lock();
        exchange.has_ended = true;
        let adopted = mem::take(&mut exchange.adopted);
        drop(exchange);
        drop(adopted);
    }
}
