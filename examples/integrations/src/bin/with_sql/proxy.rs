//! A proxy in front of the server that drops one chosen command or reply.

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rediscope::redis::ConnectionAddr;

/// The bytes to drop; the connection is closed with them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    /// MULTI and the commands after it.
    BeforeCommands,
    /// EXEC: the server never receives it.
    ExecLost,
    /// The reply to EXEC: the server has applied the transaction.
    ReplyLost,
}

impl Fault {
    /// The command that triggers the fault.
    fn word(self) -> &'static [u8] {
        match self {
            Self::BeforeCommands => b"MULTI",
            Self::ExecLost | Self::ReplyLost => b"EXEC",
        }
    }
}

/// The proxy. Its threads live as long as the program.
#[derive(Debug)]
pub(crate) struct FaultProxy {
    address: SocketAddr,
    next: Arc<Mutex<Option<Fault>>>,
}

impl FaultProxy {
    pub(crate) fn start(server: &ConnectionAddr) -> Result<Self, Box<dyn Error>> {
        let ConnectionAddr::Tcp(host, port) = server else {
            return Err("this example needs a server on a plain TCP port".into());
        };
        let server = (host.clone(), *port);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let proxy = Self { address: listener.local_addr()?, next: Arc::default() };
        let next = Arc::clone(&proxy.next);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // A server that cannot be reached closes the client's connection.
                if let Ok(server) = TcpStream::connect(&server) {
                    let _ = splice(client, server, &next);
                }
            }
        });
        Ok(proxy)
    }

    pub(crate) fn address(&self) -> ConnectionAddr {
        ConnectionAddr::Tcp(self.address.ip().to_string(), self.address.port())
    }

    /// Causes the fault at the next command that triggers it.
    pub(crate) fn cause(&self, fault: Fault) {
        *self.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
    }
}

fn splice(
    client: TcpStream,
    server: TcpStream,
    next: &Arc<Mutex<Option<Fault>>>,
) -> io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let drops_reply = Arc::new(AtomicBool::new(false));
    let (up, down) = ((client.try_clone()?, server.try_clone()?), (server, client));
    let (next, lost) = (Arc::clone(next), Arc::clone(&drops_reply));
    thread::spawn(move || {
        pump(up.0, up.1, |bytes| {
            let fault = take_if_due(&next, bytes);
            lost.fetch_or(fault == Some(Fault::ReplyLost), Ordering::SeqCst);
            matches!(fault, None | Some(Fault::ReplyLost))
        });
    });
    thread::spawn(move || pump(down.0, down.1, |_| !drops_reply.load(Ordering::SeqCst)));
    Ok(())
}

/// The commands of this example are short, so each write arrives in one read.
fn take_if_due(next: &Mutex<Option<Fault>>, bytes: &[u8]) -> Option<Fault> {
    let mut next = next.lock().unwrap_or_else(PoisonError::into_inner);
    next.take_if(|fault| bytes.windows(fault.word().len()).any(|part| part == fault.word()))
}

/// Copies bytes until one side is closed or `passes` returns false, then closes both.
fn pump(mut from: TcpStream, mut to: TcpStream, mut passes: impl FnMut(&[u8]) -> bool) {
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let bytes = buffer.get(..read).unwrap_or_default();
        if !passes(bytes) || to.write_all(bytes).is_err() {
            break;
        }
    }
    // An error means that the side is closed already.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
