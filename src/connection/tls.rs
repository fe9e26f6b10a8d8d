//! The certificates that TLS trusts and presents, and TLS on a socket.
//!
//! No key or certificate appears in `Debug` or in an error, and every certificate is verified.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use redis::{Client, ClientTlsConfig, ConnectionInfo, TlsCertificates};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{Error as Broken, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::connection::url::{Address, is_tls, plain};
use crate::error::config::ConfigError;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::settings::tls::{Own, Tls};

/// Maximum number of plaintext bytes in one record.
const RECORD: usize = 16 * 1024;
/// Age at which the system's root certificates are read again.
const ROOTS_FRESH: Duration = Duration::from_secs(60);
/// Minimum timeout of a socket.
const LEAST: Duration = Duration::from_millis(1);

impl Tls {
    /// Returns the address with this TLS for all of its TLS connections.
    pub(crate) fn over(&self, address: Address) -> Result<Address, ConfigError> {
        self.check()?;
        Ok(match address {
            Address::One(info) => Address::One(Box::new(self.over_one(*info)?)),
            Address::Cluster(nodes) => {
                let nodes = nodes.into_iter().map(|node| self.over_one(node));
                Address::Cluster(nodes.collect::<Result<_, _>>()?)
            }
            Address::Sentinel(mut behind) => {
                let servers_tls = is_tls(&behind.server_template);
                // The caller has requested a connection without encryption to the servers.
                let in_clear = behind.server_template_given
                    && !servers_tls
                    && behind.sentinels.iter().any(is_tls);
                // Sentinels may be reached without TLS if the servers are not.
                for info in behind.sentinels.iter_mut().filter(|info| is_tls(info)) {
                    *info = self.over_one(info.clone())?;
                }
                if !servers_tls && !in_clear {
                    return Err(wrong(
                        "the servers behind the sentinels are not reached by TLS: \
                         give `server_info` an address that begins with rediss://",
                    ));
                }
                if !in_clear {
                    behind.server_template = self.over_one(behind.server_template)?;
                }
                Address::Sentinel(behind)
            }
        })
    }

    fn over_one(&self, info: ConnectionInfo) -> Result<ConnectionInfo, ConfigError> {
        if !is_tls(&info) {
            return Err(wrong("the address is not one of TLS, which begins with rediss"));
        }
        let client = Client::build_with_tls(info, self.as_redis());
        let client = client.map_err(|error| wrong(plain(&error)))?;
        Ok(client.get_connection_info().clone())
    }

    /// Converts to the type of redis-rs 1, which has no constructors for it.
    #[cfg(not(rediscope_redis_2))]
    fn as_redis(&self) -> TlsCertificates {
        let client_tls = self
            .own
            .clone()
            .map(|own| ClientTlsConfig { client_cert: own.certificate, client_key: own.key });
        TlsCertificates { client_tls, root_cert: self.roots.clone() }
    }

    /// Converts to the type of redis-rs 2, which has no public literals for it (`scripts/redis2`).
    #[cfg(rediscope_redis_2)]
    fn as_redis(&self) -> TlsCertificates {
        let mut certificates = TlsCertificates::new();
        if let Some(own) = self.own.clone() {
            let own = ClientTlsConfig::new(own.certificate, own.key);
            certificates = certificates.client_tls_config(own);
        }
        match self.roots.clone() {
            Some(roots) => certificates.root_cert(roots),
            None => certificates,
        }
    }

    /// Parses all of the PEM. It refuses input that redis-rs accepts silently: no certificate at
    /// all, and a key of another certificate.
    fn check(&self) -> Result<(), ConfigError> {
        let roots = self.roots()?.unwrap_or_else(RootCertStore::empty);
        self.config(Arc::new(roots)).map(drop)
    }

    /// Returns the root certificates, if they are given.
    fn roots(&self) -> Result<Option<RootCertStore>, ConfigError> {
        let Some(pem) = &self.roots else { return Ok(None) };
        let mut store = RootCertStore::empty();
        for certificate in certificates("root_certificates", pem)? {
            let added = store.add(certificate);
            added.map_err(|_| wrong("root_certificates: one is no certificate of X.509"))?;
        }
        Ok(Some(store))
    }

    /// Returns the configuration of connections that trust `roots`.
    fn config(&self, roots: Arc<RootCertStore>) -> Result<Arc<ClientConfig>, ConfigError> {
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|_| wrong("the crypto provider knows no version of TLS"))?
            .with_root_certificates(roots);
        let mut config = match &self.own {
            None => config.with_no_client_auth(),
            Some(Own { certificate, key }) => {
                let chain = certificates("client_certificate", certificate)?;
                let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| match error {
                    Broken::NoItemsFound => wrong(
                        "client_certificate: the key's PEM holds no private key that is not \
                         encrypted",
                    ),
                    _ => wrong("client_certificate: the key's PEM cannot be read"),
                })?;
                config.with_client_auth_cert(chain, key).map_err(|error| match error {
                    rustls::Error::InconsistentKeys(_) => {
                        wrong("client_certificate: the key is not the certificate's")
                    }
                    _ => wrong("client_certificate: certificate or key cannot be used"),
                })?
            }
        };
        // A resumed session would rely on an earlier check of the certificate.
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}

fn certificates(what: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    // The error would show a line that may belong to a key.
    let read = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let read = read.map_err(|_| wrong(format!("{what}: the PEM cannot be read")))?;
    match read.is_empty() {
        true => Err(wrong(format!("{what}: the PEM holds no certificate"))),
        false => Ok(read),
    }
}

fn wrong(reason: impl Into<String>) -> ConfigError {
    ConfigError::setting("tls", reason)
}

/// The certificates that connections to one server use.
#[derive(Clone)]
pub(crate) enum Trust {
    /// Given root certificates.
    Given(Arc<ClientConfig>),
    /// The system's root certificates, as they are when a connection is opened.
    System(Tls),
}

impl Trust {
    pub(crate) fn new(tls: Option<&Tls>) -> Result<Self, ConfigError> {
        let tls = tls.cloned().unwrap_or_default();
        match tls.roots()? {
            Some(roots) => Ok(Self::Given(tls.config(Arc::new(roots))?)),
            None => Ok(Self::System(tls)),
        }
    }

    /// Runs the TLS handshake on a socket that has just been connected to `host`.
    pub(crate) fn secure(
        &self,
        host: &str,
        socket: &TcpStream,
        until: Instant,
    ) -> Result<Session, ConnectionError> {
        let mut session = Session::new(self.config()?, host)?;
        session.shake_hands(socket, until).map_err(|error| handshake_failed(&error))?;
        Ok(session)
    }

    /// Whether [`config`](Self::config) reads files.
    #[cfg(feature = "tokio")]
    pub(crate) fn config_may_block(&self) -> bool {
        matches!(self, Self::System(_))
    }

    /// Returns the configuration of a connection that is opened now.
    pub(crate) fn config(&self) -> Result<Arc<ClientConfig>, ConnectionError> {
        match self {
            Self::Given(config) => Ok(Arc::clone(config)),
            Self::System(tls) => {
                tls.config(system_roots()).map_err(|error| failed(error.to_string()))
            }
        }
    }
}

fn failed(text: impl Into<String>) -> ConnectionError {
    ConnectionError::new(ConnectionErrorKind::Io, text)
}

/// The error of a handshake that failed, or that took too long.
pub(crate) fn handshake_failed(error: &io::Error) -> ConnectionError {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => ConnectionError::timed_out(
            "no reply in TLS's handshake; a port without TLS may be silent",
        ),
        _ => ConnectionError::of_io(error),
    }
}

/// Reads the system's root certificates. A certificate that cannot be parsed is not trusted.
fn system_roots() -> Arc<RootCertStore> {
    static READ: Mutex<Option<(Instant, Arc<RootCertStore>)>> = Mutex::new(None);
    let mut read = READ.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some((at, roots)) = &*read
        && at.elapsed() < ROOTS_FRESH
    {
        return Arc::clone(roots);
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let roots = Arc::new(roots);
    *read = Some((Instant::now(), Arc::clone(&roots)));
    roots
}

/// TLS on a socket that it does not own: plaintext on this side, records on the other side.
///
/// Its drop sends nothing.
pub(crate) struct Session {
    connection: ClientConnection,
    /// Number of plaintext bytes in a record that the socket has not accepted as a whole.
    leaving: usize,
}

/// The next step of a handshake.
pub(crate) enum HandshakeStep {
    Read,
    Write,
}

impl Session {
    /// The session of a new connection to `host`, before its handshake.
    pub(crate) fn new(config: Arc<ClientConfig>, host: &str) -> Result<Self, ConnectionError> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| failed("the host is no name that a certificate may have"))?;
        let connection = ClientConnection::new(config, name);
        let connection = connection.map_err(|error| failed(error.to_string()))?;
        Ok(Self { connection, leaving: 0 })
    }

    fn shake_hands(&mut self, mut socket: &TcpStream, until: Instant) -> io::Result<()> {
        while let Some(step) = self.handshake_step() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match step {
                HandshakeStep::Read => socket.set_read_timeout(Some(left.max(LEAST)))?,
                HandshakeStep::Write => socket.set_write_timeout(Some(left.max(LEAST)))?,
            }
            match self.take_step(&step, &mut socket) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                step => step?,
            }
        }
        Ok(())
    }

    /// Returns what the handshake does next; `None`: it is over.
    pub(crate) fn handshake_step(&self) -> Option<HandshakeStep> {
        if self.connection.wants_write() {
            Some(HandshakeStep::Write)
        } else {
            self.connection.is_handshaking().then_some(HandshakeStep::Read)
        }
    }

    /// Takes a step of the handshake, in one system call.
    pub(crate) fn take_step(
        &mut self,
        step: &HandshakeStep,
        socket: &mut (impl Read + Write),
    ) -> io::Result<()> {
        match step {
            HandshakeStep::Write => self.flush(socket),
            HandshakeStep::Read => match self.read(socket)? {
                true => Ok(()),
                false => Err(ended_in_hand_shake()),
            },
        }
    }

    /// Passes bytes of the next record to the socket, in one system call. Returns how many bytes of
    /// `plain` were sent for good. The number is 0 until the whole record
    /// is sent, because the peer cannot decrypt a part of it. Until then `plain` begins with the same bytes at the
    /// next call.
    pub(crate) fn write(
        &mut self,
        socket: &mut (impl Read + Write),
        plain: &[u8],
    ) -> io::Result<usize> {
        if self.leaving == 0 {
            let record = plain.get(..RECORD).unwrap_or(plain);
            self.leaving = self.connection.writer().write(record)?;
            if self.leaving == 0 && !self.connection.wants_write() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
        }
        if let Err(error) = self.flush(socket) {
            return Err(self.read_rejection(socket, error));
        }
        match self.connection.wants_write() {
            true => Ok(0),
            false => Ok(std::mem::take(&mut self.leaving)),
        }
    }

    fn flush(&mut self, socket: &mut impl Write) -> io::Result<()> {
        match self.connection.write_tls(socket)? {
            0 => Err(io::ErrorKind::BrokenPipe.into()),
            _ => Ok(()),
        }
    }

    /// Reads the alert with which a closing peer gives its reason.
    fn read_rejection(&mut self, socket: &mut (impl Read + Write), error: io::Error) -> io::Error {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
        if !matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset) {
            return error;
        }
        loop {
            // This does not wait: the other side is gone.
            match self.read(socket) {
                Ok(true) => {}
                Err(reason) if reason.kind() == io::ErrorKind::InvalidData => return reason,
                Ok(false) | Err(_) => return error,
            }
        }
    }

    /// Reads the bytes that have arrived, in one system call; `false`: the peer has closed. The
    /// caller has [taken](Self::take) all earlier bytes.
    pub(crate) fn read(&mut self, socket: &mut (impl Read + Write)) -> io::Result<bool> {
        if self.connection.read_tls(socket)? == 0 {
            return Ok(false);
        }
        match self.connection.process_new_packets() {
            Ok(state) => Ok(!state.peer_has_closed() || state.plaintext_bytes_to_read() > 0),
            Err(error) => {
                // The alert may show the reason in the peer's log.
                let _: io::Result<()> = self.flush(socket);
                Err(io::Error::new(io::ErrorKind::InvalidData, error))
            }
        }
    }

    /// Moves plaintext into `room`; 0: there is none.
    pub(crate) fn take(&mut self, room: &mut [u8]) -> usize {
        // The reader fails if there is no plaintext, now or ever.
        self.connection.reader().read(room).unwrap_or(0)
    }
}

fn ended_in_hand_shake() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the other side closed it in TLS's handshake")
}

/// Returns the cryptography of TLS: the program's choice, else `ring`. `ring` is then installed,
/// because redis-rs's connections panic without a choice.
fn provider() -> Arc<CryptoProvider> {
    if let Some(chosen) = CryptoProvider::get_default() {
        return Arc::clone(chosen);
    }
    let ours = ring::default_provider();
    // The call fails if another thread was faster; then that thread's choice stays.
    let _: Result<_, _> = ours.clone().install_default();
    CryptoProvider::get_default().map_or_else(|| Arc::new(ours), Arc::clone)
}
