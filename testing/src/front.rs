//! Other entries to a [`Proxy`](super::proxy::Proxy): a unix socket, and TLS.
//!
//! The proxy reads and breaks RESP on TCP. A front accepts connections of another kind and passes their
//! plain bytes to the proxy, so that each fault of the proxy can be used over each transport.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use tempfile::TempDir;

/// Closed, and its threads joined, when it is dropped.
pub struct Front {
    url: String,
    shared: Arc<Shared>,
    wake: Box<dyn Fn() + Send + Sync>,
    accepting: Option<JoinHandle<()>>,
    _folder: Option<TempDir>,
}

#[derive(Default)]
struct Shared {
    shut: AtomicBool,
    open: Mutex<Vec<Arc<dyn Ends>>>,
    pumps: Mutex<Vec<JoinHandle<()>>>,
    /// Raised before a write and lowered behind it: a client may have read what is not counted yet.
    replying: AtomicU64,
    replied: AtomicU64,
}

/// Ends both sides of one connection.
trait Ends: Send + Sync {
    fn end(&self);
}

impl Front {
    /// A unix socket that leads to this TCP address.
    pub fn unix(to: SocketAddr) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the socket");
        let path: PathBuf = folder.path().join("front.sock");
        let listener = UnixListener::bind(&path).expect("bind the unix socket");
        let shared = Arc::<Shared>::default();
        let accepting = Arc::clone(&shared);
        let accept = move || {
            for client in listener.incoming() {
                if accepting.shut.load(Ordering::SeqCst) {
                    break;
                }
                if let Ok(client) = client {
                    let _ = accepting.join_unix(client, to);
                }
            }
        };
        let url = format!("redis+unix://{}", path.display());
        let wake = Box::new(move || drop(UnixStream::connect(&path)));
        Self::new(url, shared, wake, spawn(accept), Some(folder))
    }

    /// A TLS server, under the name `localhost`, that leads to this TCP address.
    pub fn tls(to: SocketAddr, identity: &super::tls::Identity) -> Self {
        let config = Arc::new(tls::config(identity));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind the TLS front");
        let address = listener.local_addr().expect("the front's address");
        let shared = Arc::<Shared>::default();
        let accepting = Arc::clone(&shared);
        let accept = move || {
            for client in listener.incoming() {
                if accepting.shut.load(Ordering::SeqCst) {
                    break;
                }
                if let Ok(client) = client {
                    let _ = tls::join(&accepting, client, to, Arc::clone(&config));
                }
            }
        };
        let url = format!("rediss://localhost:{}/", address.port());
        let wake = Box::new(move || drop(TcpStream::connect(address)));
        Self::new(url, shared, wake, spawn(accept), None)
    }

    fn new(
        url: String,
        shared: Arc<Shared>,
        wake: Box<dyn Fn() + Send + Sync>,
        accepting: JoinHandle<()>,
        folder: Option<TempDir>,
    ) -> Self {
        Self { url, shared, wake, accepting: Some(accepting), _folder: folder }
    }

    /// The URL to connect to.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Plain bytes that were passed on to clients, in all; `None` while some are being written.
    pub fn replied(&self) -> Option<u64> {
        let idle = self.shared.replying.load(Ordering::SeqCst) == 0;
        idle.then(|| self.shared.replied.load(Ordering::SeqCst))
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.shared.shut.store(true, Ordering::SeqCst);
        (self.wake)();
        let mut threads: Vec<_> = self.accepting.take().into_iter().collect();
        for thread in threads.drain(..) {
            let _ = thread.join();
        }
        self.shared.open.lock().unwrap().drain(..).for_each(|connection| connection.end());
        let pumps = std::mem::take(&mut *self.shared.pumps.lock().unwrap());
        for pump in pumps {
            let _ = pump.join();
        }
    }
}

impl Shared {
    fn join_unix(self: &Arc<Self>, client: UnixStream, to: SocketAddr) -> io::Result<()> {
        let server = TcpStream::connect(to)?;
        server.set_nodelay(true)?;
        let pair = Arc::new((client, server));
        let (requests, replies) = (Arc::clone(&pair), Arc::clone(&pair));
        let shared = Arc::clone(self);
        self.keep(
            pair,
            [
                spawn(move || pump(&requests.0, &requests.1, &*requests, None)),
                spawn(move || pump(&replies.1, &replies.0, &*replies, Some(&shared))),
            ],
        );
        Ok(())
    }

    fn reply(&self, bytes: usize, write: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.replying.fetch_add(1, Ordering::SeqCst);
        let written = write();
        if written.is_ok() {
            self.replied.fetch_add(bytes as u64, Ordering::SeqCst);
        }
        self.replying.fetch_sub(1, Ordering::SeqCst);
        written
    }

    fn keep(&self, connection: Arc<dyn Ends>, pumps: [JoinHandle<()>; 2]) {
        self.open.lock().unwrap().push(connection);
        self.pumps.lock().unwrap().extend(pumps);
    }
}

impl Ends for (UnixStream, TcpStream) {
    fn end(&self) {
        let _ = self.0.shutdown(Shutdown::Both);
        let _ = self.1.shutdown(Shutdown::Both);
    }
}

/// Until either side ends; then both do. `replies` counts what is passed on.
fn pump<'p>(
    mut from: impl Read + 'p,
    mut to: impl Write + 'p,
    connection: &dyn Ends,
    replies: Option<&Shared>,
) {
    let mut bytes = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut bytes) {
        let mut write = || to.write_all(&bytes[..length]);
        let written = match replies {
            Some(shared) => shared.reply(length, write),
            None => write(),
        };
        if written.is_err() {
            break;
        }
    }
    connection.end();
}

fn spawn(body: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    thread::Builder::new().name("front".to_owned()).spawn(body).expect("start a front's thread")
}

mod tls {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use rustls::{ServerConfig, ServerConnection};

    use super::super::tls::Identity;
    use super::*;

    pub(super) fn config(identity: &Identity) -> ServerConfig {
        let certificates = CertificateDer::pem_slice_iter(identity.certificate.as_bytes());
        let certificates = certificates.collect::<Result<Vec<_>, _>>().expect("a certificate");
        let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("protocol versions")
            .with_no_client_auth()
            .with_single_cert(certificates, key)
            .expect("a server's identity")
    }

    /// The sockets are read without the lock, the session is used under it.
    struct Connection {
        client: TcpStream,
        server: TcpStream,
        session: Mutex<ServerConnection>,
        shared: Arc<Shared>,
    }

    impl Ends for Connection {
        fn end(&self) {
            let _ = self.client.shutdown(Shutdown::Both);
            let _ = self.server.shutdown(Shutdown::Both);
        }
    }

    pub(super) fn join(
        shared: &Arc<Shared>,
        client: TcpStream,
        to: SocketAddr,
        config: Arc<ServerConfig>,
    ) -> io::Result<()> {
        let server = TcpStream::connect(to)?;
        server.set_nodelay(true)?;
        client.set_nodelay(true)?;
        let session = Mutex::new(ServerConnection::new(config).map_err(io::Error::other)?);
        let connection =
            Arc::new(Connection { client, server, session, shared: Arc::clone(shared) });
        let (requests, replies) = (Arc::clone(&connection), Arc::clone(&connection));
        let ended = |connection: &Connection, _: io::Result<()>| connection.end();
        shared.keep(
            connection,
            [
                spawn(move || ended(&requests, requests.decrypt())),
                spawn(move || ended(&replies, replies.encrypt())),
            ],
        );
        Ok(())
    }

    impl Connection {
        fn decrypt(&self) -> io::Result<()> {
            let mut bytes = [0; 16 * 1024];
            loop {
                let length = (&self.client).read(&mut bytes)?;
                if length == 0 {
                    return Ok(());
                }
                let mut records = &bytes[..length];
                let mut plain = Vec::new();
                let mut session = self.session.lock().unwrap();
                while !records.is_empty() {
                    session.read_tls(&mut records)?;
                    session.process_new_packets().map_err(io::Error::other)?;
                    match session.reader().read_to_end(&mut plain) {
                        Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                            return Err(error);
                        }
                        _ => {}
                    }
                }
                self.flush(&mut session)?;
                drop(session);
                (&self.server).write_all(&plain)?;
            }
        }

        fn encrypt(&self) -> io::Result<()> {
            let mut bytes = [0; 16 * 1024];
            loop {
                let length = (&self.server).read(&mut bytes)?;
                self.shared.reply(length, || {
                    let mut session = self.session.lock().unwrap();
                    match length {
                        0 => session.send_close_notify(),
                        _ => session.writer().write_all(&bytes[..length])?,
                    }
                    self.flush(&mut session)
                })?;
                if length == 0 {
                    return Ok(());
                }
            }
        }

        fn flush(&self, session: &mut ServerConnection) -> io::Result<()> {
            while session.wants_write() {
                session.write_tls(&mut &self.client)?;
            }
            Ok(())
        }
    }
}
