//! A proxy in front of the server that loses, once, what it is told to lose.

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rediscope::redis::ConnectionAddr;

/// What is to be lost, and the connection with it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    /// MULTI: the commands never leave.
    BeforeCommands,
    /// EXEC, and what was sent with it: the server never sees it.
    ExecLost,
    /// EXEC's answer: the server has done it.
    AnswerLost,
}

impl Fault {
    /// The command that brings it about.
    fn word(self) -> &'static [u8] {
        match self {
            Self::BeforeCommands => b"MULTI",
            Self::ExecLost | Self::AnswerLost => b"EXEC",
        }
    }
}

/// The proxy. Its threads live as long as the program.
#[derive(Debug)]
pub(crate) struct Wire {
    address: SocketAddr,
    next: Arc<Mutex<Option<Fault>>>,
}

impl Wire {
    pub(crate) fn to(server: &ConnectionAddr) -> Result<Self, Box<dyn Error>> {
        let ConnectionAddr::Tcp(host, port) = server else {
            return Err("this example needs a server on a plain TCP port".into());
        };
        let server = (host.clone(), *port);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let wire = Self { address: listener.local_addr()?, next: Arc::default() };
        let next = Arc::clone(&wire.next);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // A server that cannot be reached closes the client's connection.
                if let Ok(server) = TcpStream::connect(&server) {
                    let _ = splice(client, server, &next);
                }
            }
        });
        Ok(wire)
    }

    pub(crate) fn address(&self) -> ConnectionAddr {
        ConnectionAddr::Tcp(self.address.ip().to_string(), self.address.port())
    }

    /// Loses it, the next time it comes by.
    pub(crate) fn will(&self, fault: Fault) {
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
    let loses_answer = Arc::new(AtomicBool::new(false));
    let (up, down) = ((client.try_clone()?, server.try_clone()?), (server, client));
    let (next, lost) = (Arc::clone(next), Arc::clone(&loses_answer));
    thread::spawn(move || {
        pump(up.0, up.1, |bytes| {
            let fault = take_if_due(&next, bytes);
            lost.fetch_or(fault == Some(Fault::AnswerLost), Ordering::SeqCst);
            matches!(fault, None | Some(Fault::AnswerLost))
        });
    });
    thread::spawn(move || pump(down.0, down.1, |_| !loses_answer.load(Ordering::SeqCst)));
    Ok(())
}

/// The commands of this example are short: each write comes in one piece.
fn take_if_due(next: &Mutex<Option<Fault>>, bytes: &[u8]) -> Option<Fault> {
    let mut next = next.lock().unwrap_or_else(PoisonError::into_inner);
    next.take_if(|fault| bytes.windows(fault.word().len()).any(|part| part == fault.word()))
}

/// Carries bytes until one side is gone, or until something `passes` not; then both are.
fn pump(mut from: TcpStream, mut to: TcpStream, mut passes: impl FnMut(&[u8]) -> bool) {
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let bytes = buffer.get(..read).unwrap_or_default();
        if !passes(bytes) || to.write_all(bytes).is_err() {
            break;
        }
    }
    // Either may be closed already.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
