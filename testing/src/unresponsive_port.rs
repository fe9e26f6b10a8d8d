//! A port on which connecting neither succeeds nor fails: only a connect timeout ends it.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

const FULL: Duration = Duration::from_millis(100);
/// More connects than any kernel lets into the shortest queue.
const MOST: usize = 16;

/// A listener that never accepts and whose queue is full: the kernel drops further SYNs (Linux).
pub struct UnresponsivePort {
    address: SocketAddr,
    _listener: Socket,
    _queued: Vec<TcpStream>,
}

impl UnresponsivePort {
    /// On a free port.
    pub fn open() -> Self {
        Self::at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
    }

    /// On an address of the caller's choice.
    pub fn at(address: SocketAddr) -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        listener.bind(&address.into()).expect("a free port");
        listener.listen(0).expect("listen");
        let address = listener.local_addr().ok().and_then(|address| address.as_socket());
        let address = address.expect("the listener's address");
        let connect = || TcpStream::connect_timeout(&address, FULL).ok();
        let queued: Vec<_> = std::iter::from_fn(connect).take(MOST).collect();
        assert!(queued.len() < MOST, "this kernel's accept queue never fills");
        Self { address, _listener: listener, _queued: queued }
    }

    /// The URL to connect to.
    pub fn url(&self) -> String {
        format!("redis://{}/", self.address)
    }
}
