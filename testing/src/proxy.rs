//! A TCP proxy between a client and a Redis server that breaks connections at exact points.
//!
//! A rule has a point and a fault: `(Trigger::BeforeReplyTo("EXEC"), Fault::Cut)` lets the server
//! execute a transaction and loses the reply. Without a rule the proxy changes nothing.
//!
//! Its threads and sockets end with it.

mod connection;
mod resp;
mod script;
mod shared;
mod state;

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{fmt, io};

use socket2::SockRef;

use self::connection::Connection;
use self::resp::Direction;
use self::shared::Shared;
use self::state::Side;
use crate::test_server::TestServer;
use crate::{eventually, try_for};

pub use self::script::{Fault, Script, Trigger};

/// Timeout of a connect to the server. The accepting thread connects, and Drop waits for it.
const DIAL: Duration = Duration::from_secs(1);
/// Size of a small socket buffer, in bytes. The kernel raises it to its minimum.
const SMALL: usize = 1024;
/// Size of a wide socket buffer, in bytes. The kernel lowers it to its maximum.
const WIDE: usize = 4 << 20;
/// Maximum wait for a free port, and for the end of connections.
const SOCKET_WAIT: Duration = Duration::from_secs(5);

/// Which connection a script is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The n-th connection this proxy accepts, counted from 1 over its whole life.
    Nth(u64),
    /// The next one. Several scripts for the next connection queue up.
    Next,
    /// Every connection to come that has no script of its own.
    All,
}

/// A listening proxy. Its port, threads and connections end with it.
pub struct Proxy {
    address: SocketAddr,
    inner: Arc<Inner>,
    door: Mutex<Option<Door>>,
}

/// The listening thread; the port is closed once it is joined.
struct Door {
    listener: Arc<TcpListener>,
    shut: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

struct Inner {
    shared: Arc<Shared>,
    upstream: Mutex<SocketAddr>,
    small: AtomicBool,
    lines: Mutex<Lines>,
}

/// Scripts, connections and what happens to connections to come under one lock: a script is either armed
/// before a connection is made or on it, and no connection is made once connections are refused or muted.
#[derive(Default)]
struct Lines {
    refuse: bool,
    mute: bool,
    muted: Vec<TcpStream>,
    nth: BTreeMap<u64, Script>,
    next: VecDeque<Script>,
    all: Script,
    /// Weak, because the pumps must be the last to let go: a reset is sent by the closing.
    connections: Vec<Weak<Connection>>,
    pumps: Vec<JoinHandle<()>>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Proxy {
    /// A proxy in front of this server, on a free port.
    pub fn to(server: &TestServer) -> Self {
        Self::to_address(server.address())
    }

    /// A proxy in front of this address, on a free port.
    pub fn to_address(upstream: SocketAddr) -> Self {
        Self::at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), upstream)
    }

    /// At an address of the caller's choice.
    pub fn at(address: SocketAddr, upstream: SocketAddr) -> Self {
        Self::try_at(address, upstream).expect("bind the proxy")
    }

    pub(crate) fn try_at(address: SocketAddr, upstream: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let inner = Arc::new(Inner {
            shared: Arc::default(),
            upstream: Mutex::new(upstream),
            small: AtomicBool::new(false),
            lines: Mutex::default(),
        });
        let door = Mutex::new(Some(Door::open(listener, Arc::clone(&inner))));
        Ok(Self { address, inner, door })
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The URL to connect to, database 0.
    pub fn url(&self) -> String {
        format!("redis://{}/", self.address)
    }

    /// The URL to connect to, with a database.
    pub fn url_db(&self, db: u32) -> String {
        format!("{}{db}", self.url())
    }

    /// For connections to come.
    pub fn set_upstream(&self, upstream: SocketAddr) {
        *self.inner.upstream.lock().unwrap() = upstream;
    }

    /// A script for connections to come. A connection follows one script: its own by number, else
    /// the one for the next, else the one for all.
    pub fn script(&self, which: Which, script: impl Into<Script>) {
        let mut lines = self.inner.lines();
        match which {
            Which::Nth(n) => drop(lines.nth.insert(n, script.into())),
            Which::Next => lines.next.push_back(script.into()),
            Which::All => lines.all = script.into(),
        }
    }

    /// Arms every live connection, counting from now, and every one to come.
    pub fn arm(&self, script: impl Into<Script>) {
        let script = script.into();
        let mut lines = self.inner.lines();
        lines.all = script.clone();
        for connection in lines.live() {
            connection.arm(script.clone());
        }
    }

    /// Forgets every rule that has not fired. What fired stays as it is; see [`release`](Self::release).
    pub fn disarm(&self) {
        let mut lines = self.inner.lines();
        lines.nth.clear();
        lines.next.clear();
        lines.all = Script::new();
        for connection in lines.live() {
            connection.arm(Script::new());
        }
    }

    /// Lets the held bytes of all live connections go, however long ago their client left.
    pub fn release(&self) {
        self.live().iter().for_each(|connection| connection.release());
    }

    /// Accept and close at once.
    pub fn refuse_new(&self, refuse: bool) {
        self.inner.lines().refuse = refuse;
    }

    /// Accepts new connections without reading or replying. A muted connection stays so until it is cut.
    pub fn mute_new(&self, mute: bool) {
        self.inner.lines().mute = mute;
    }

    /// Connections to come have the smallest kernel buffers, so that a client's write soon blocks
    /// when nothing passes. Its own send buffer is still the client's affair.
    pub fn shrink_buffers(&self) {
        self.inner.small.store(true, Ordering::SeqCst);
        if let Some(door) = &*self.door.lock().unwrap() {
            door.set_buffer(SMALL);
        }
    }

    /// Connections to come have wide kernel buffers again. Those that were made before keep theirs.
    pub fn widen_buffers(&self) {
        self.inner.small.store(false, Ordering::SeqCst);
        if let Some(door) = &*self.door.lock().unwrap() {
            door.set_buffer(WIDE);
        }
    }

    /// Connecting is refused by the kernel from here on. Live connections go on.
    pub fn close_listener(&self) {
        if let Some(door) = self.door.lock().unwrap().take() {
            door.close(self.address);
        }
    }

    /// Listens on the same port again.
    pub fn reopen_listener(&self) {
        let mut door = self.door.lock().unwrap();
        if door.is_none() {
            let listener = try_for(SOCKET_WAIT, || TcpListener::bind(self.address).ok())
                .expect("the proxy's port is free again");
            *door = Some(Door::open(listener, Arc::clone(&self.inner)));
        }
    }

    /// Every read of the proxy's waits this long before it is passed on, either way.
    pub fn set_delay(&self, delay: Duration) {
        self.set_delays(delay, delay);
    }

    /// Like [`set_delay`](Self::set_delay), one delay a direction.
    pub fn set_delays(&self, requests: Duration, replies: Duration) {
        for (direction, delay) in [(Direction::Requests, requests), (Direction::Replies, replies)] {
            let micros = u64::try_from(delay.as_micros()).expect("a delay");
            self.inner.shared.latency_micros[direction as usize].store(micros, Ordering::SeqCst);
        }
    }

    /// FIN to both sides of every live connection.
    pub fn cut_all(&self) {
        let mut lines = self.inner.lines();
        lines.muted.clear();
        lines.live().iter().for_each(|connection| connection.close(&[Side::Client, Side::Server]));
    }

    /// RST to both sides of every live connection; returns when they are gone.
    pub fn reset_all(&self) {
        let mut lines = self.inner.lines();
        for muted in lines.muted.drain(..) {
            let _ = SockRef::from(&muted).set_linger(Some(Duration::ZERO));
        }
        let connections: Vec<Weak<Connection>> = lines.connections.clone();
        drop(lines);
        connections.iter().filter_map(Weak::upgrade).for_each(|connection| connection.reset());
        eventually(SOCKET_WAIT, "every connection was reset", || {
            connections.iter().all(|connection| connection.strong_count() == 0)
        });
    }

    /// Nothing passes on any live connection until [`release`](Self::release).
    pub fn black_hole_all(&self) {
        self.live().iter().for_each(|connection| connection.hold());
    }

    /// [`black_hole_all`](Self::black_hole_all) and [`mute_new`](Self::mute_new) in one step:
    /// called one after the other, they miss a connection that is opened in between.
    pub fn silence(&self) {
        let mut lines = self.inner.lines();
        lines.mute = true;
        lines.live().iter().for_each(|connection| connection.hold());
    }

    /// Sends these bytes to the client of every live connection, in the server's place, while no reply
    /// is under way. The number of clients.
    pub fn send_to_clients(&self, bytes: &[u8]) -> usize {
        self.live()
            .iter()
            .filter(|connection| connection.is_open())
            .map(|connection| connection.send_to_client(bytes))
            .count()
    }

    /// Open connections to the server, as their clients see it. A connection that is held counts
    /// until it is released, a muted or refused one never.
    pub fn connections(&self) -> usize {
        self.live().iter().filter(|connection| connection.is_open()).count()
    }

    /// Connections accepted in all, the refused and the muted ones included.
    pub fn accepted(&self) -> u64 {
        self.inner.shared.accepted.load(Ordering::SeqCst)
    }

    /// Bytes of clients handed to the server's kernel, or about to be, in all.
    pub fn client_bytes(&self) -> u64 {
        self.inner.shared.bytes[Direction::Requests as usize].load(Ordering::SeqCst)
    }

    /// Bytes of servers handed to the client's kernel, or about to be, in all.
    pub fn server_bytes(&self) -> u64 {
        self.inner.shared.bytes[Direction::Replies as usize].load(Ordering::SeqCst)
    }

    /// Commands whose forwarding began.
    pub fn commands(&self) -> u64 {
        self.inner.shared.commands.load(Ordering::SeqCst)
    }

    /// How often a client spoke after the server had: its round trips.
    pub fn turns(&self) -> u64 {
        self.inner.shared.turns.load(Ordering::SeqCst)
    }

    /// Number of the connection and name of every command forwarded since the last call.
    pub fn take_journal(&self) -> Vec<(u64, String)> {
        self.inner.shared.take_journal()
    }

    /// Faults that scripts fired, counted once per connection they fired on.
    pub fn fired(&self) -> usize {
        self.inner.shared.fired.load(Ordering::SeqCst)
    }

    fn live(&self) -> Vec<Arc<Connection>> {
        self.inner.lines().live()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.close_listener();
        self.cut_all();
        let pumps = std::mem::take(&mut self.inner.lines().pumps);
        for pump in pumps {
            let outcome = pump.join();
            if !thread::panicking() {
                outcome.expect("a pump of the proxy panicked");
            }
        }
    }
}

impl Door {
    fn open(listener: TcpListener, inner: Arc<Inner>) -> Self {
        let small = inner.small.load(Ordering::SeqCst);
        let shut = Arc::new(AtomicBool::new(false));
        let listener = Arc::new(listener);
        let (is_shut, open) = (Arc::clone(&shut), Arc::clone(&listener));
        let accept = move || {
            for client in open.incoming() {
                if is_shut.load(Ordering::SeqCst) {
                    break;
                }
                // A client that is gone before it was accepted is no event worth a word.
                if let Ok(client) = client {
                    inner.receive(client);
                }
            }
        };
        let thread = spawn("proxy-accept", accept).expect("start the accepting thread");
        let door = Self { listener, shut, thread };
        if small {
            door.set_buffer(SMALL);
        }
        door
    }

    /// What is accepted inherits the listener's buffer.
    fn set_buffer(&self, size: usize) {
        let set = SockRef::from(&*self.listener).set_recv_buffer_size(size);
        set.expect("set the size of the receive buffer");
    }

    fn close(self, address: SocketAddr) {
        self.shut.store(true, Ordering::SeqCst);
        // Wakes the thread from its accept.
        let wake = TcpStream::connect_timeout(&address, DIAL);
        let outcome = self.thread.join();
        drop(wake);
        if !thread::panicking() {
            outcome.expect("the accepting thread panicked");
        }
    }
}

impl Inner {
    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap()
    }

    fn receive(&self, client: TcpStream) {
        let number = self.shared.accepted.fetch_add(1, Ordering::SeqCst) + 1;
        let Some(client) = self.lines().admit(client) else { return };
        let upstream = *self.upstream.lock().unwrap();
        if let Ok(server) = TcpStream::connect_timeout(&upstream, DIAL) {
            // On an error both sockets are closed, which is what the client has to see.
            let _ = self.join(number, client, server);
        }
    }

    fn join(&self, number: u64, client: TcpStream, server: TcpStream) -> io::Result<()> {
        if self.small.load(Ordering::SeqCst) {
            SockRef::from(&server).set_send_buffer_size(SMALL)?;
        }
        let mut lines = self.lines();
        // Again: dialling took its time, and they may be refused or muted since.
        let Some(client) = lines.admit(client) else { return Ok(()) };
        let script = lines.script_for(number);
        let connection = Connection::new(number, client, server, script, Arc::clone(&self.shared))?;
        let connection = Arc::new(connection);
        lines.connections.retain(|connection| connection.strong_count() > 0);
        lines.connections.push(Arc::downgrade(&connection));
        lines.pumps.retain(|pump| !pump.is_finished());
        for direction in [Direction::Requests, Direction::Replies] {
            let connection = Arc::clone(&connection);
            let pump = spawn("proxy-pump", move || connection.pump(direction))?;
            lines.pumps.push(pump);
        }
        Ok(())
    }
}

impl Lines {
    /// `None` if it was refused or muted.
    fn admit(&mut self, client: TcpStream) -> Option<TcpStream> {
        if self.refuse {
            return None;
        }
        if self.mute {
            self.muted.push(client);
            return None;
        }
        Some(client)
    }

    fn script_for(&mut self, number: u64) -> Script {
        let own = self.nth.remove(&number);
        own.or_else(|| self.next.pop_front()).unwrap_or_else(|| self.all.clone())
    }

    fn live(&self) -> Vec<Arc<Connection>> {
        self.connections.iter().filter_map(Weak::upgrade).collect()
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).spawn(body)
}
