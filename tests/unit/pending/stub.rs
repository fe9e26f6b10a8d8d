//! Tasks without a runtime: each wait is pending once, and then blocks until a real server has replied.

use std::any::Any;
use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use tracing::Level;

use crate::commit::side::Side;
use crate::connection::connection::{Connection, Interruption};
use crate::connection::deadline::Deadline;
use crate::connection::endpoint::Endpoint;
use crate::connection::handshake::{OpenOptions, shake_hands};
use crate::connection::io::Io;
use crate::connection::polling::Polling;
use crate::connection::transport::Transport;
use crate::connection::wire::Wire;
use crate::error::any::Error;
use crate::error::checkout::CheckoutError;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::error::in_doubt::{InDoubt, Resolution};
use crate::error::open_scope::OpenScope;
use crate::error::pin_expired::PinExpired;
use crate::pool::batch_request::BatchRequest;
use crate::pool::batch_response::{BatchResponse, Interrupted};
use crate::pool::blocking::BlockingCommand;
use crate::pool::config::PoolConfig;
use crate::pool::context::PoolContext;
use crate::pool::early_watch::{EarlyWatch, WatchOffer};
use crate::pool::first_packet::Armed;
use crate::pool::key_turn::KeyQueue;
use crate::pool::line::{Line, ensure_alive};
use crate::pool::pending::pending_once;
use crate::pool::scope_origin::ScopeOrigin;
use crate::pool::server_pool::{BatchCheckout, PinnedLine, ServerPool};
use crate::protocol::batch::RequestKind;
use crate::protocol::connection_state::CloseReason;
use crate::protocol::exec::Collector;
use crate::protocol::resp::reply::Reply;
use crate::settings::settings::Settings;
use crate::status::lanes::LaneStatus;
use crate::status::node::NodeStatus;
use crate::sync::lock;

/// The callers are tasks of this stub.
pub(super) struct StubIo;

impl Io for StubIo {
    type Wire = StubWire;

    async fn login_version(endpoint: &Endpoint, _: &Settings, _: Instant) -> Option<u64> {
        endpoint.login_version()
    }

    async fn pause(time: Duration) {
        pending_once().await;
        std::thread::sleep(time);
    }

    async fn open(
        endpoint: &Endpoint,
        settings: &Settings,
        options: OpenOptions,
    ) -> Result<Connection<StubWire>, ConnectionError> {
        pending_once().await;
        let login = endpoint.login()?;
        let limit = settings.connect_timeout;
        let transport = Transport::new(endpoint.connect(limit)?, Polling::default());
        let wire = StubWire { transport, late_awaited: 0 };
        let deadline = Deadline::after(limit);
        shake_hands(endpoint, settings, options, (login, wire, false), deadline).await
    }
}

/// Where the next connection of the test's thread fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// After this many more bytes were sent.
    Sent(usize),
    /// At a read after this many more.
    Reads(usize),
}

thread_local! {
    static CUT: Cell<Option<Cut>> = const { Cell::new(None) };
}

/// Makes a connection of this thread fail, once. Returns the cut that has not happened yet.
pub(super) fn set_cut(cut: Option<Cut>) -> Option<Cut> {
    CUT.replace(cut)
}

/// A socket whose waits are pending once, and whose writes are pending once more in their middle.
pub(super) struct StubWire {
    transport: Transport,
    /// Number of awaited replies by an account that is wrong: it is kept after the bytes were sent.
    late_awaited: u64,
}

impl StubWire {
    fn cut_off(&mut self) -> ConnectionError {
        CUT.set(None);
        self.transport.close();
        ConnectionError::new(ConnectionErrorKind::Closed, "cut off by the test")
    }
}

impl Wire for StubWire {
    fn share_replies(&mut self, arrays: Vec<(u64, Vec<u32>)>, replies: u64) {
        self.transport.share_replies(arrays, replies);
    }

    fn limit_reply_size(&mut self, bytes: usize) {
        self.transport.limit_reply_size(bytes);
    }

    async fn send(
        &mut self,
        bytes: &[u8],
        awaited: u64,
        deadline: Deadline,
    ) -> Result<(), (usize, ConnectionError)> {
        let end = match CUT.get() {
            Some(Cut::Sent(left)) if left < bytes.len() => left,
            Some(Cut::Sent(left)) => {
                CUT.set(Some(Cut::Sent(left - bytes.len())));
                bytes.len()
            }
            _ => bytes.len(),
        };
        let (allowed, _) = bytes.split_at(end);
        // A socket that is closed with unread replies may take from the server what it has not read yet. So
        // before a cut all bytes leave at once: the server has read the first of them with the last.
        let (first, second) = allowed.split_at(if CUT.get().is_some() { 0 } else { end / 2 });
        let mut sent = 0;
        for part in [first, second] {
            pending_once().await;
            let written = self.transport.send(part, awaited, deadline).await;
            written.map_err(|(left, error)| (sent + left, error))?;
            sent += part.len();
        }
        self.late_awaited += awaited;
        if end < bytes.len() { Err((end, self.cut_off())) } else { Ok(()) }
    }

    fn next(&mut self, most: u32) -> Result<Option<Reply>, ConnectionError> {
        let reply = self.transport.next(most)?;
        self.late_awaited -= reply.as_ref().map_or(0, |reply| u64::from(reply.count()));
        Ok(reply)
    }

    fn may_be_watch(&self) -> Option<bool> {
        self.transport.may_be_watch()
    }

    fn has_unread(&self) -> bool {
        self.transport.has_unread()
    }

    async fn fill(&mut self, deadline: Deadline) -> Result<(), ConnectionError> {
        pending_once().await;
        match CUT.get() {
            Some(Cut::Reads(0)) => return Err(self.cut_off()),
            Some(Cut::Reads(left)) => CUT.set(Some(Cut::Reads(left - 1))),
            _ => {}
        }
        self.transport.fill(deadline).await
    }

    fn unread(&self) -> Option<usize> {
        self.transport.unread()
    }

    fn check_socket(&mut self, pushes: bool) -> Result<(), ConnectionError> {
        self.transport.check_socket(pushes)
    }

    fn check_unexpected(&mut self, pushes: bool) -> Result<(), ConnectionError> {
        self.transport.check_unexpected(pushes)
    }
}

/// The pool of one server, without a limit: a checkout takes an idle connection or opens one.
#[derive(Clone)]
pub(super) struct StubPool {
    shared: Arc<StubShared>,
}

pub(super) struct StubShared {
    context: PoolContext,
    idle: Mutex<Vec<Connection<StubWire>>>,
    /// The reason of each connection that was closed when it was returned.
    pub(super) closed: Mutex<Vec<CloseReason>>,
    /// Whether a request that may be batched is sent by the leader of a batch.
    pub(super) leads: AtomicBool,
    /// Whether a caller waits with a watch that may travel behind EXEC.
    pub(super) carries: AtomicBool,
    /// Whether a connection is returned by the account that is kept too late.
    pub(super) counts_late: AtomicBool,
    closes: AtomicBool,
}

impl Deref for StubPool {
    type Target = StubShared;

    fn deref(&self) -> &StubShared {
        &self.shared
    }
}

impl StubShared {
    /// Takes the connection that was returned last.
    pub(super) fn take_idle(&self) -> Option<Connection<StubWire>> {
        lock(&self.idle).pop()
    }
}

impl StubPool {
    fn line(&self) -> StubLine {
        StubLine { pool: self.clone(), connection: None, needs_asking: false, events: Vec::new() }
    }
}

impl ServerPool for StubPool {
    type Io = StubIo;
    type Line = StubLine;
    type Pin = StubPin;
    type Turns = KeyQueue<StubLine>;
    type Group = BatchRequest;
    type Weak = Weak<StubShared>;

    fn new(config: PoolConfig, endpoint: Endpoint) -> Self {
        let shared = StubShared {
            context: PoolContext::new(config, endpoint),
            idle: Mutex::default(),
            closed: Mutex::default(),
            leads: AtomicBool::default(),
            carries: AtomicBool::default(),
            counts_late: AtomicBool::default(),
            closes: AtomicBool::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    fn weak(&self) -> Weak<StubShared> {
        Arc::downgrade(&self.shared)
    }

    fn upgrade(weak: &Weak<StubShared>) -> Option<Self> {
        weak.upgrade().map(|shared| Self { shared })
    }

    fn context(&self) -> &PoolContext {
        &self.context
    }

    async fn checkout(&self, deadline: Instant) -> Result<StubLine, CheckoutError> {
        let mut line = self.line();
        line.connect(deadline).await?;
        Ok(line)
    }

    async fn try_checkout(&self, deadline: Instant) -> Result<Option<StubLine>, CheckoutError> {
        self.checkout(deadline).await.map(Some)
    }

    async fn checkout_batched(
        &self,
        deadline: Instant,
        _response_wait: Duration,
        request: &(impl Fn() -> BatchRequest + Sync),
    ) -> Result<BatchCheckout<Self>, CheckoutError> {
        let line = self.checkout(deadline).await?;
        Ok(match self.leads.load(Ordering::Relaxed) {
            true => BatchCheckout::Lead(line, request()),
            false => BatchCheckout::Alone(line),
        })
    }

    async fn prepare_batch(
        line: &mut StubLine,
        _group: &mut BatchRequest,
        deadline: Instant,
    ) -> Result<(), Error> {
        ensure_alive(line, deadline).await
    }

    async fn send_batch(
        mut line: StubLine,
        own: BatchRequest,
        deadline: Deadline,
    ) -> Result<BatchResponse, CheckoutError> {
        let connection = line.current().unwrap();
        let commands = match own.kind {
            RequestKind::Block { commands } => commands,
            RequestKind::Read | RequestKind::Calls { .. } => 0,
        };
        let (mut collector, mut values) = (Collector::new(commands, 0), Vec::new());
        let exchanged = connection
            .exchange(&own.bytes, &own.kind.expected(), deadline, &mut |expect, reply| match own
                .kind
            {
                RequestKind::Block { .. } => collector.take(expect, reply),
                RequestKind::Read | RequestKind::Calls { .. } => values.push(reply.into_value()),
            })
            .await;
        Ok(match exchanged {
            Err(Interruption { left, cause }) => BatchResponse::Interrupted(Interrupted {
                left: left.is_none(),
                trusted: true,
                cause,
            }),
            Ok(()) => match own.kind {
                RequestKind::Block { .. } => BatchResponse::Block(collector.verdict()),
                RequestKind::Read => BatchResponse::Read(values.remove(0)),
                RequestKind::Calls { .. } => BatchResponse::Calls(values),
            },
        })
    }

    async fn pin(
        &self,
        _origin: ScopeOrigin,
        deadline: Instant,
        needs_asking: bool,
        _router: Arc<dyn Any + Send + Sync>,
    ) -> Result<StubPin, CheckoutError> {
        let line = self.checkout(deadline).await?;
        let line = Self::with_ask(line, needs_asking);
        Ok(StubPin { held: Arc::new(Mutex::new(Some(line))) })
    }

    fn with_ask(mut line: StubLine, needs_asking: bool) -> StubLine {
        line.needs_asking = needs_asking;
        line
    }

    fn warm(&self) {}

    fn close(&self) {
        self.closes.store(true, Ordering::Relaxed);
    }

    fn retire(&self) {
        self.close();
    }

    fn open_scopes(&self) -> Vec<OpenScope> {
        Vec::new()
    }

    fn status(&self, address: String, slots: usize) -> NodeStatus {
        let idle = lock(&self.idle).len() as u32;
        NodeStatus {
            address,
            slots,
            size: idle,
            in_use: 0,
            idle,
            waiting: 0,
            lanes: LaneStatus::default(),
            last_connect_error: None,
        }
    }
}

impl Side for StubPool {
    async fn resolve(doubt: &InDoubt) -> Resolution {
        pending_once().await;
        doubt.resolve()
    }

    /// Returns the connection, which is closed if anything of the scope is left on it.
    fn return_dropped(pin: StubPin) -> Result<(), Error> {
        drop(pin);
        Ok(())
    }
}

/// A checked-out connection. It is returned or closed on drop.
pub(super) struct StubLine {
    pub(super) pool: StubPool,
    connection: Option<Connection<StubWire>>,
    needs_asking: bool,
    events: Vec<Box<dyn FnOnce() + Send>>,
}

impl Line for StubLine {
    type Wire = StubWire;

    fn context(&self) -> &PoolContext {
        &self.pool.shared.context
    }

    fn needs_asking(&self) -> bool {
        self.needs_asking
    }

    fn current(&mut self) -> Option<&mut Connection<StubWire>> {
        self.connection.as_mut()
    }

    async fn connect(&mut self, _deadline: Instant) -> Result<(), CheckoutError> {
        pending_once().await;
        if self.is_closed() {
            return Err(CheckoutError::Closed);
        }
        let begun = Instant::now();
        let idle = self.pool.take_idle();
        let context = self.context();
        let connection = match idle {
            Some(mut connection) => {
                connection.mark_taken();
                connection
            }
            None => {
                let options = OpenOptions {
                    purpose: context.config.purpose,
                    multi_apart: false,
                    generation: context.generation(),
                    deadline: None,
                };
                let opened = StubIo::open(context.endpoint(), context.settings(), options).await;
                opened
                    .map_err(|source| CheckoutError::Connect { waited: begun.elapsed(), source })?
            }
        };
        self.connection = Some(connection);
        Ok(())
    }

    fn close(&mut self) {
        if let Some(mut connection) = self.connection.take() {
            let reason = match self.pool.counts_late.load(Ordering::Relaxed) {
                true => (connection.wire().late_awaited > 0).then_some(CloseReason::LeftDirty),
                false => connection.close_reason(Instant::now(), self.context().generation()),
            };
            match reason {
                Some(reason) => lock(&self.pool.closed).push(reason),
                None => lock(&self.pool.idle).push(connection),
            }
        }
    }

    fn is_unwinding(&self) -> bool {
        std::thread::panicking()
    }

    fn log_later(&mut self, _level: Level, event: impl FnOnce() + Send + 'static) {
        self.events.push(Box::new(event));
    }

    fn begin_blocking(
        &self,
        _command: &BlockingCommand,
    ) -> Result<impl Send + use<>, CheckoutError> {
        if self.is_closed() { Err(CheckoutError::Closed) } else { Ok(()) }
    }

    fn is_closed(&self) -> bool {
        self.pool.closes.load(Ordering::Relaxed)
    }

    fn take_early_watch(&mut self, _armed: Option<Armed>) -> Option<Arc<EarlyWatch>> {
        let watch = b"*2\r\n$5\r\nWATCH\r\n$3\r\none\r\n";
        let read = b"*2\r\n$3\r\nGET\r\n$3\r\none\r\n";
        let offer =
            WatchOffer::<()> { watch, travels: true, reads: (read, 1), needs: None, turn: None };
        let carries = self.pool.carries.load(Ordering::Relaxed);
        carries.then(|| offer.early_watch()).flatten().map(Arc::new)
    }
}

impl Drop for StubLine {
    fn drop(&mut self) {
        self.close();
        self.events.drain(..).for_each(|event| event());
    }
}

/// A scope's access to its connection. A call takes the connection out.
pub(super) struct StubPin {
    held: Arc<Mutex<Option<StubLine>>>,
}

/// The connection during a call of the scope.
pub(super) struct StubCall {
    held: Arc<Mutex<Option<StubLine>>>,
    line: Option<StubLine>,
}

impl Deref for StubCall {
    type Target = StubLine;

    fn deref(&self) -> &StubLine {
        self.line.as_ref().unwrap()
    }
}

impl DerefMut for StubCall {
    fn deref_mut(&mut self) -> &mut StubLine {
        self.line.as_mut().unwrap()
    }
}

impl Drop for StubCall {
    fn drop(&mut self) {
        *lock(&self.held) = self.line.take();
    }
}

impl PinnedLine for StubPin {
    type Line = StubLine;
    type Call = StubCall;

    fn call<E: From<PinExpired> + From<CheckoutError>>(&self) -> Result<StubCall, E> {
        let line = lock(&self.held).take();
        Ok(StubCall { held: Arc::clone(&self.held), line: Some(line.unwrap()) })
    }

    fn last_call<E: From<PinExpired> + From<CheckoutError>>(self) -> Result<StubCall, E> {
        self.call()
    }

    fn touch(&self) {}
}
