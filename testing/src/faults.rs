//! The faults of a network, at exact points of a conversation: the public face of the proxy.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use crate::proxy::{Fault, Proxy, Script, Trigger};
use crate::test_server::TestServer;

/// A proxy on a free port of the loopback interface, which breaks connections at exact points.
///
/// The code under test connects to [`url`](Self::url); until something is armed, the proxy changes nothing. An armed
/// fault happens **once**, on the first connection that reaches its point, whether it was open before or not. Counts
/// begin when it is armed, on each connection by itself. One fault is armed at a time: another one takes its place.
///
/// The proxy reads RESP in clear. It runs on threads of its own, so the code under test may be one of threads or of
/// tokio. The drop closes its port and its connections.
///
/// ```
/// use rediscope::{SessionManager, TransactionOptions, prelude::*};
/// use rediscope_testing::{Faults, TestServer};
///
/// let server = TestServer::start()?;
/// let faults = Faults::before(&server)?;
/// let shop = SessionManager::connect(faults.url())?.transactional();
/// let shop = shop.with(TransactionOptions::new().exactly_once());
/// // A cut after each number of bytes, until the block has no more: it is applied once all the same.
/// let mut sold = 0;
/// loop {
///     faults.cut_after_bytes(sold);
///     let before = faults.fired();
///     shop.run(|tx| { tx.incr("sold", 1); Ok(()) })?;
///     sold += 1;
///     if faults.fired() == before { break }
/// }
/// faults.release();
/// let applied: u64 = shop.run(|tx| Ok(tx.get("sold")))?;
/// assert_eq!(applied, sold);
/// assert!(sold > 50);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Faults {
    proxy: Proxy,
}

impl Faults {
    /// A proxy before this server.
    ///
    /// # Errors
    /// No port can be bound.
    pub fn before(server: &TestServer) -> io::Result<Self> {
        Self::before_address(server.address())
    }

    /// A proxy before a server at this address, which is connected to anew for each connection.
    ///
    /// # Errors
    /// No port can be bound.
    pub fn before_address(server: SocketAddr) -> io::Result<Self> {
        let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Ok(Self { proxy: Proxy::try_at(free, server)? })
    }

    /// The URL of the proxy's port: `redis://127.0.0.1:PORT/`.
    pub fn url(&self) -> String {
        self.proxy.url()
    }

    /// Like [`url`](Self::url), with the number of a database.
    pub fn url_db(&self, db: u32) -> String {
        self.proxy.url_db(db)
    }

    /// The address of the proxy's port.
    pub fn address(&self) -> SocketAddr {
        self.proxy.address()
    }

    /// Loses the reply to the next command of this name: the server has executed it, and the connection is cut
    /// before the first byte of its reply. `faults.lose_reply("EXEC")` is a transaction that was applied, and whose
    /// client does not learn so.
    pub fn lose_reply(&self, command: &'static str) {
        self.arm(Trigger::BeforeReplyTo(command), Fault::Cut);
    }

    /// Cuts the connection before the first byte of the next command of this name: the server never gets it. Between
    /// a client and the proxy the two cases look the same.
    pub fn cut_before(&self, command: &'static str) {
        self.arm(Trigger::BeforeCommandNamed(command), Fault::Cut);
    }

    /// Cuts the connection after the last byte of the next command of this name: the server may have executed it.
    pub fn cut_after(&self, command: &'static str) {
        self.arm(Trigger::AfterCommandNamed(command), Fault::Cut);
    }

    /// Cuts a connection after so many bytes of its client were forwarded. A loop over them visits each state of a
    /// conversation.
    pub fn cut_after_bytes(&self, bytes: u64) {
        self.arm(Trigger::ClientBytes(bytes), Fault::Cut);
    }

    /// Holds back the reply to the next command of this name, and all that follow on that connection, until
    /// [`release`](Self::release): what a timeout is for.
    pub fn hold_reply(&self, command: &'static str) {
        self.arm(Trigger::BeforeReplyTo(command), Fault::HoldReplies);
    }

    /// Any fault at any point, once.
    pub fn arm(&self, at: Trigger, fault: Fault) {
        self.proxy.arm(Script::from((at, fault)).once());
    }

    /// Passes nothing on, not even the end of a connection, on every connection of now and of later, until
    /// [`release`](Self::release). Connects succeed.
    pub fn black_hole(&self) {
        self.proxy.arm((Trigger::Now, Fault::BlackHole));
    }

    /// Passes on what is held, and forgets what is armed.
    pub fn release(&self) {
        self.proxy.disarm();
        self.proxy.release();
    }

    /// Closes every connection, with a FIN to both sides.
    pub fn cut(&self) {
        self.proxy.cut_all();
    }

    /// Resets every connection, with a RST to both sides, and returns when they are gone.
    ///
    /// # Panics
    /// They are not gone within 5 s.
    pub fn reset(&self) {
        self.proxy.reset_all();
    }

    /// Whether to close each new connection as soon as it is accepted.
    pub fn refuse_new(&self, refuse: bool) {
        self.proxy.refuse_new(refuse);
    }

    /// Number of armed faults that have happened since the start: a test that expects a fault should check it.
    pub fn fired(&self) -> usize {
        self.proxy.fired()
    }

    /// Number of connections that are open on the client's side.
    pub fn connections(&self) -> usize {
        self.proxy.connections()
    }
}
