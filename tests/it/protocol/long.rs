//! Requests longer than the buffers of sockets, to a peer that does not read while it writes.
//!
//! Guarantee: replies-of-every-size

use crate::fixture::SOON;
use crate::side::{BuildSide as _, SessionManager};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use rediscope::prelude::*;
use rediscope::{Builder, redis};
use socket2::SockRef;

use rediscope_testing::front::Front;

const READS: usize = 150_000;
const WRITES: usize = 60_000;
const KEY: &str =
    "a-key-that-is-long-enough-to-fill-the-buffers-of-the-sockets-with-requests-alone";
const VALUE: &str = "0123456789012345678901234567890123456789012345678901234567890123456789";

/// Listens, and serves each connection on one thread, which reads a command, then writes its reply.
fn stubborn_peer() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    SockRef::from(&listener).set_recv_buffer_size(64 * 1024).unwrap();
    SockRef::from(&listener).set_send_buffer_size(64 * 1024).unwrap();
    let address = listener.local_addr().unwrap();
    let serve = |socket: TcpStream| {
        thread::spawn(move || {
            let _: std::io::Result<()> = serve(&socket);
        });
    };
    thread::spawn(move || listener.incoming().flatten().for_each(serve));
    address
}

fn serve(socket: &TcpStream) -> std::io::Result<()> {
    let (mut reader, mut writer) = (BufReader::new(socket), BufWriter::new(socket));
    let mut queued = None;
    loop {
        if reader.buffer().is_empty() {
            writer.flush()?;
        }
        let Some(name) = command(&mut reader)? else { return Ok(()) };
        match (name.as_str(), &mut queued) {
            ("MULTI", queued) => {
                *queued = Some(0);
                writer.write_all(b"+OK\r\n")?;
            }
            ("EXEC", queued) => {
                let replies = queued.take().unwrap();
                write!(writer, "*{replies}\r\n")?;
                (0..replies).try_for_each(|_| writer.write_all(b"+OK\r\n"))?;
            }
            ("DISCARD", queued) => {
                *queued = None;
                writer.write_all(b"+OK\r\n")?;
            }
            (_, Some(queued)) => {
                *queued += 1;
                writer.write_all(b"+QUEUED\r\n")?;
            }
            ("GET", None) => write!(writer, "${}\r\n{VALUE}{VALUE}\r\n", 2 * VALUE.len())?,
            (_, None) => writer.write_all(b"+OK\r\n")?,
        }
    }
}

/// The name of the next command.
fn command(reader: &mut impl BufRead) -> std::io::Result<Option<String>> {
    let number = |reader: &mut dyn BufRead| -> std::io::Result<Option<usize>> {
        let mut line = String::new();
        Ok(match reader.read_line(&mut line)? {
            0 => None,
            _ => Some(line[1..].trim().parse().unwrap()),
        })
    };
    let Some(words) = number(reader)? else { return Ok(None) };
    let mut name = None;
    for _ in 0..words {
        let Some(length) = number(reader)? else { return Ok(None) };
        let mut word = vec![0; length + 2];
        reader.read_exact(&mut word)?;
        name.get_or_insert_with(|| String::from_utf8_lossy(&word[..length]).to_ascii_uppercase());
    }
    Ok(name)
}

fn long_requests(transport: &str, builder: Builder) {
    let sessions = builder
        .max_size(1)
        .response_timeout(SOON)
        .checkout_timeout(4 * SOON)
        .connect_timeout(Duration::from_secs(5))
        .build_side()
        .unwrap();
    let mut pipe = redis::pipe();
    for _ in 0..READS {
        pipe.get(KEY);
    }
    let read = pipe.query::<Vec<String>>(&mut sessions.pooled()).map_err(rediscope::Error::from);
    let read = read.unwrap_or_else(|error| panic!("{transport}: {error:#}"));
    assert_eq!(read.len(), READS, "{transport}");
    assert!(read.iter().all(|value| value.len() == 2 * VALUE.len()), "{transport}");
    let accounts = sessions.transactional();
    let written = accounts.watch(["k"]).run(|_, tx| {
        for _ in 0..WRITES {
            tx.set(KEY, VALUE);
        }
        Ok(())
    });
    written.unwrap_or_else(|error| panic!("{transport}: {error:#}"));
    // The connections are clean: each has had exactly its replies.
    assert_eq!(sessions.pooled().get::<_, String>("k").unwrap().len(), 2 * VALUE.len());
    accounts.run(|tx| Ok(tx.set("k", 1))).unwrap();
}

#[test]
fn a_long_request_to_a_peer_that_does_not_read_while_it_writes_ends() {
    let peer = stubborn_peer();
    let url = |scheme: &str| format!("{scheme}://{peer}/");
    long_requests("TCP", SessionManager::builder(url("redis")));
}

#[test]
fn a_long_request_over_a_unix_socket_ends_too() {
    let front = Front::unix(stubborn_peer());
    long_requests("unix", SessionManager::builder(front.url()));
}

#[test]
#[cfg(feature = "tls-rustls")]
fn a_long_request_over_tls_ends_too() {
    let authority = rediscope_testing::tls::Authority::new();
    let front = Front::tls(stubborn_peer(), &authority.server(&["localhost"]));
    let trusted = rediscope::Tls::new().root_certificates(authority.pem());
    long_requests("TLS", SessionManager::builder(front.url()).tls(trusted));
}
