//! One connection over TLS, of a thread or of a task, and its other end, which keeps to TLS as far as a test lets
//! it.
//!
//! Guarantee: deadlines, not-sent

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rcgen::{CertifiedKey, KeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned, SupportedProtocolVersion, version};

use crate::connection::connection::{Connection, Interruption};
use crate::connection::deadline::Deadline;
use crate::connection::endpoint::Endpoint;
use crate::connection::polling::Polling;
use crate::connection::transport::Transport;
use crate::connection::url::one as parse;
use crate::connection::wire::Wire;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::pool::tests::SOON;
use crate::protocol::connection_state::CloseReason;
use crate::protocol::connection_state::Expect;
use crate::settings::settings::Settings;
use crate::sync::now::now;

const LIMIT: Duration = Duration::from_millis(400);
const VERSIONS: [&SupportedProtocolVersion; 2] = [&version::TLS12, &version::TLS13];

type Peer = StreamOwned<ServerConnection, TcpStream>;

/// The side that the connection is of.
trait Side {
    type Wire: Wire;

    fn connect(
        endpoint: &Endpoint,
        limit: Duration,
    ) -> Result<Connection<Self::Wire>, ConnectionError>;

    fn wait<T>(call: impl Future<Output = T>) -> T;
}

struct Threads;

impl Side for Threads {
    type Wire = Transport;

    fn connect(endpoint: &Endpoint, limit: Duration) -> Result<Connection, ConnectionError> {
        Ok(Connection::new(Transport::new(endpoint.connect(limit)?, Polling::default()), None, 0))
    }

    fn wait<T>(call: impl Future<Output = T>) -> T {
        now(call)
    }
}

#[cfg(feature = "tokio")]
mod tasks {
    use std::sync::LazyLock;

    use tokio::runtime::{Builder, Runtime};

    use super::*;
    use crate::connection::tasks::io::open_unproven;
    use crate::connection::tasks::wire::TaskWire;

    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
        Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    });

    pub(super) struct Tasks;

    impl Side for Tasks {
        type Wire = TaskWire;

        fn connect(
            endpoint: &Endpoint,
            limit: Duration,
        ) -> Result<Connection<TaskWire>, ConnectionError> {
            RUNTIME.block_on(open_unproven(endpoint, limit))
        }

        fn wait<T>(call: impl Future<Output = T>) -> T {
            RUNTIME.block_on(call)
        }
    }
}

/// Each test on both sides.
macro_rules! on_each_side {
    ($($name:ident)*) => {
        mod of_threads {
            $(
                #[test]
                fn $name() {
                    super::$name::<super::Threads>();
                }
            )*
        }

        #[cfg(feature = "tokio")]
        mod of_tasks {
            $(
                #[test]
                fn $name() {
                    super::$name::<super::tasks::Tasks>();
                }
            )*
        }
    };
}

on_each_side! {
    bytes_that_stay_behind_are_counted_exactly_also_over_tls
    of_a_peer_that_is_gone_no_more_bytes_are_counted_than_it_may_have_had
    a_reply_that_comes_in_drips_over_tls_ends_at_the_deadline
    a_handshake_of_tls_ends_within_its_time_whatever_the_peer_does
    a_session_ticket_is_no_surplus_reply
    half_a_record_is_waited_for_and_judged_when_it_is_whole
    the_end_of_tls_is_the_end_also_while_the_socket_is_open
    a_record_that_was_changed_on_its_way_ends_the_connection
}

fn identity() -> CertifiedKey<KeyPair> {
    rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap()
}

fn connect<S: Side>(
    url: &str,
    identity: &CertifiedKey<KeyPair>,
    limit: Duration,
) -> Result<Connection<S::Wire>, ConnectionError> {
    let tls = crate::Tls::new().root_certificates(identity.cert.pem());
    let settings = Settings { tls: Some(tls), ..Settings::default() };
    S::connect(&Endpoint::new(parse(url).unwrap(), &settings).unwrap(), limit)
}

/// A connection that has shaken hands, and its other side.
fn pair<S: Side>(version: &'static SupportedProtocolVersion) -> (Connection<S::Wire>, Peer) {
    let identity = identity();
    let chain = vec![identity.cert.der().clone()];
    let key = PrivatePkcs8KeyDer::from(identity.signing_key.serialize_der()).into();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("rediss://{}/", listener.local_addr().unwrap());
    let accepting = thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        socket.set_nodelay(true).unwrap();
        let connection = ServerConnection::new(Arc::new(config)).unwrap();
        let mut peer = StreamOwned::new(connection, socket);
        while peer.conn.is_handshaking() {
            peer.conn.complete_io(&mut peer.sock).unwrap();
        }
        // Session tickets, of TLS 1.3.
        peer.flush().unwrap();
        peer
    });
    let connection = connect::<S>(&url, &identity, SOON).unwrap();
    (connection, accepting.join().unwrap())
}

/// Sends a message until an error, and returns the number of its bytes that may have been sent.
fn send_part<S: Side>(
    connection: &mut Connection<S::Wire>,
    bytes: &[u8],
    limit: Duration,
) -> (usize, ConnectionError) {
    let expected = [(Expect::Plain, 1)];
    let mut take = |_, _| {};
    let sent = S::wait(connection.exchange(bytes, &expected, Deadline::after(limit), &mut take));
    let Err(Interruption { left: Some(left), cause }) = sent else { panic!("all bytes were sent") };
    (left, cause)
}

/// What is plaintext for the peer, to the end.
fn all(mut peer: Peer) -> Vec<u8> {
    let mut came = Vec::new();
    match peer.read_to_end(&mut came) {
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => panic!("{error}"),
        _ => came,
    }
}

fn bytes_that_stay_behind_are_counted_exactly_also_over_tls<S: Side>() {
    for version in VERSIONS {
        let (mut connection, peer) = pair::<S>(version);
        // A socket that is closed with session tickets in it resets the connection.
        look(&mut connection).unwrap();
        let bytes = vec![b'x'; 64 << 20];
        let begun = Instant::now();
        let (left, error) = send_part::<S>(&mut connection, &bytes, LIMIT);
        assert_eq!(error.kind(), ConnectionErrorKind::TimedOut);
        assert!(begun.elapsed() < 20 * LIMIT, "{:?}", begun.elapsed());
        assert!(left > 0);
        drop(connection);
        assert_eq!(all(peer).len(), left, "{version:?}");
    }
}

fn of_a_peer_that_is_gone_no_more_bytes_are_counted_than_it_may_have_had<S: Side>() {
    for version in VERSIONS {
        let (mut connection, mut peer) = pair::<S>(version);
        let reading = thread::spawn(move || {
            let mut came = vec![0; 100_000];
            peer.read_exact(&mut came).unwrap();
            came.len()
        });
        let bytes = vec![b'x'; 64 << 20];
        let (left, error) = send_part::<S>(&mut connection, &bytes, SOON);
        assert_eq!(error.kind(), ConnectionErrorKind::Closed, "{error}");
        assert!((reading.join().unwrap()..bytes.len()).contains(&left), "{left}");
    }
}

fn a_reply_that_comes_in_drips_over_tls_ends_at_the_deadline<S: Side>() {
    for version in VERSIONS {
        for in_records in [true, false] {
            let (mut connection, mut peer) = pair::<S>(version);
            let drips = thread::spawn(move || {
                let (mut socket, mut record) = (peer.sock.try_clone().unwrap(), Vec::new());
                peer.conn.writer().write_all(&[b'$'; 1000]).unwrap();
                peer.conn.write_tls(&mut record).unwrap();
                // Each wait for a byte is shorter than the limit; all of them together are not.
                for byte in record {
                    let dripped = match in_records {
                        true => peer.write_all(b"+").and_then(|()| peer.flush()),
                        false => socket.write_all(&[byte]),
                    };
                    if dripped.is_err() {
                        break;
                    }
                    thread::sleep(LIMIT / 20);
                }
            });
            S::wait(connection.send(b"GET", &[(Expect::Plain, 1)], Deadline::after(SOON))).unwrap();
            let begun = Instant::now();
            let error = S::wait(connection.receive(Deadline::after(LIMIT))).unwrap_err();
            let kinds = match in_records {
                // Behind the record that was never sent nothing can be decrypted.
                true => [ConnectionErrorKind::TimedOut, ConnectionErrorKind::Io],
                false => [ConnectionErrorKind::TimedOut; 2],
            };
            assert!(kinds.contains(&error.kind()), "{error}");
            assert!(begun.elapsed() < 20 * LIMIT, "{:?}", begun.elapsed());
            drop(connection);
            drips.join().unwrap();
        }
    }
}

fn a_handshake_of_tls_ends_within_its_time_whatever_the_peer_does<S: Side>() {
    let identity = identity();
    for drips in [false, true] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("rediss://{}/", listener.local_addr().unwrap());
        let peer = thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            // The beginning of a record that would be long.
            let begun: &[u8] = &[22, 3, 3, 64, 0, 2, 0, 63, 0];
            let mut bytes = begun.iter().copied().chain(std::iter::repeat(0));
            while drips && socket.write_all(&[bytes.next().unwrap()]).is_ok() {
                thread::sleep(LIMIT / 20);
            }
            let _: io::Result<u64> = io::copy(&mut socket, &mut io::sink());
        });
        let begun = Instant::now();
        let failed = connect::<S>(&url, &identity, LIMIT).map(drop).unwrap_err();
        assert_eq!(failed.kind(), ConnectionErrorKind::TimedOut, "{failed}");
        assert!((LIMIT..20 * LIMIT).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        peer.join().unwrap();
    }
}

/// It was given back, and is taken again.
fn look<W: Wire>(connection: &mut Connection<W>) -> Result<(), ConnectionErrorKind> {
    assert_eq!(connection.close_reason(Instant::now(), 0), None);
    connection.mark_taken();
    connection.check_socket().map_err(|error| error.kind())
}

fn a_session_ticket_is_no_surplus_reply<S: Side>() {
    let (mut connection, mut peer) = pair::<S>(&version::TLS13);
    // The peer has sent its tickets before `pair` returned.
    assert_eq!(look(&mut connection), Ok(()));
    assert_eq!(look(&mut connection), Ok(()));
    peer.write_all(b"+PONG\r\n").unwrap();
    peer.flush().unwrap();
    assert_eq!(look(&mut connection), Err(ConnectionErrorKind::Unexpected));
    assert_eq!(connection.close_reason(Instant::now(), 0), Some(CloseReason::Protocol));
}

fn half_a_record_is_waited_for_and_judged_when_it_is_whole<S: Side>() {
    for version in VERSIONS {
        for (text, whole) in [
            (&b"+OK\r\n"[..], Err(ConnectionErrorKind::Unexpected)),
            (b"$5\r\nWR", Err(ConnectionErrorKind::Unexpected)),
            (b">1\r\n+a\r\n", Ok(())),
            (b">1\r\n+", Ok(())),
        ] {
            let (mut connection, mut peer) = pair::<S>(version);
            connection.set_protocol(1 << 20, true);
            let mut record = Vec::new();
            peer.conn.writer().write_all(text).unwrap();
            peer.conn.write_tls(&mut record).unwrap();
            let (one, other) = record.split_at(record.len() / 2);
            peer.sock.write_all(one).unwrap();
            assert_eq!(look(&mut connection), Ok(()), "{version:?}");
            peer.sock.write_all(other).unwrap();
            assert_eq!(look(&mut connection), whole, "{version:?}, {text:?}");
        }
    }
}

fn the_end_of_tls_is_the_end_also_while_the_socket_is_open<S: Side>() {
    for version in VERSIONS {
        let (mut connection, mut peer) = pair::<S>(version);
        peer.conn.send_close_notify();
        while peer.conn.wants_write() {
            peer.conn.write_tls(&mut peer.sock).unwrap();
        }
        assert_eq!(look(&mut connection), Err(ConnectionErrorKind::Closed), "{version:?}");
        assert_eq!(connection.close_reason(Instant::now(), 0), Some(CloseReason::Closed));
    }
}

fn a_record_that_was_changed_on_its_way_ends_the_connection<S: Side>() {
    for version in VERSIONS {
        let (mut connection, mut peer) = pair::<S>(version);
        let mut record = Vec::new();
        peer.conn.writer().write_all(b"+PONG\r\n").unwrap();
        peer.conn.write_tls(&mut record).unwrap();
        *record.last_mut().unwrap() ^= 1;
        S::wait(connection.send(b"PING", &[(Expect::Plain, 1)], Deadline::after(SOON))).unwrap();
        peer.sock.write_all(&record).unwrap();
        let error = S::wait(connection.receive(Deadline::after(SOON))).unwrap_err();
        assert_eq!(error.kind(), ConnectionErrorKind::Io, "{error}");
        assert_eq!(connection.close_reason(Instant::now(), 0), Some(CloseReason::Closed));
    }
}
