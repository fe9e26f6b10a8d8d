//! Whom TLS trusts, and as whom it presents itself.
//!
//! Never: a key or a certificate in `Debug` or in an error.

use std::fmt;
use std::sync::Arc;

use redis::{Client, ClientTlsConfig, ConnectionInfo, TlsCertificates};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{Error as Broken, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::address::{Address, Behind, is_tls, plain};
use crate::error::ConfigError;

/// Whom TLS trusts, and as whom it presents itself: the argument of
/// [`Builder::tls`](crate::Builder::tls) (feature `tls-rustls`).
///
/// Plain data, all of it PEM: [`build`](crate::Builder::build) reads and checks it. By itself it
/// trusts the system's root certificates and presents none of its own, which is what a `rediss://`
/// address does without it.
///
/// ```no_run
/// use std::fs;
/// use rediscope::{SessionManager, Tls};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let tls = Tls::new()
///     .root_certificates(fs::read("ca.pem")?)
///     .client_certificate(fs::read("client.pem")?, fs::read("client.key")?);
/// let sessions = SessionManager::builder("rediss://redis.internal/").tls(tls).build()?;
/// # Ok(()) }
/// ```
#[derive(Clone, Default)]
#[must_use = "it does nothing before Builder::tls"]
pub struct Tls {
    roots: Option<Vec<u8>>,
    own: Option<Own>,
}

#[derive(Clone)]
struct Own {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Tls {
    /// Trusts the system's root certificates, and presents no certificate.
    pub fn new() -> Self {
        Self::default()
    }

    /// The certificates to trust, one or more, **in place of** the system's.
    pub fn root_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.roots = Some(pem.into());
        self
    }

    /// The certificate to present, followed by those between it and the authority if there are any,
    /// and its private key (PKCS#8, PKCS#1 or SEC1, not encrypted).
    pub fn client_certificate(
        mut self,
        certificate_pem: impl Into<Vec<u8>>,
        key_pem: impl Into<Vec<u8>>,
    ) -> Self {
        self.own = Some(Own { certificate: certificate_pem.into(), key: key_pem.into() });
        self
    }

    /// The address, with every TLS connection it leads to made so.
    pub(crate) fn over(&self, address: Address) -> Result<Address, ConfigError> {
        self.check()?;
        Ok(match address {
            Address::One(info) => Address::One(Box::new(self.over_one(*info)?)),
            Address::Cluster(nodes) => {
                let nodes = nodes.into_iter().map(|node| self.over_one(node));
                Address::Cluster(nodes.collect::<Result<_, _>>()?)
            }
            Address::Sentinel(behind) => {
                let Behind { name, sentinels, like, like_is_given } = *behind;
                // The caller has said that the servers alone are reached in clear.
                let in_clear = like_is_given && !is_tls(&like) && sentinels.iter().any(is_tls);
                // They may be reached without TLS where the servers are not.
                let sentinels = sentinels.into_iter().map(|info| match is_tls(&info) {
                    true => self.over_one(info),
                    false => Ok(info),
                });
                let sentinels = sentinels.collect::<Result<_, _>>()?;
                if !is_tls(&like) && !in_clear {
                    return Err(wrong(
                        "the servers behind the sentinels are not reached by TLS: \
                         give `servers_like` an address that begins with rediss://",
                    ));
                }
                let like = if in_clear { like } else { self.over_one(like)? };
                Address::Sentinel(Box::new(Behind { name, sentinels, like, like_is_given }))
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

    /// As redis-rs takes it: version 1 has no constructors for these types.
    #[cfg(not(rediscope_redis_2))]
    fn as_redis(&self) -> TlsCertificates {
        let client_tls = self
            .own
            .clone()
            .map(|own| ClientTlsConfig { client_cert: own.certificate, client_key: own.key });
        TlsCertificates { client_tls, root_cert: self.roots.clone() }
    }

    /// As redis-rs takes it: version 2 has no public literals for these types (`scripts/redis2`).
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

    /// What redis-rs takes without a word: no certificate at all, and a key of another certificate.
    fn check(&self) -> Result<(), ConfigError> {
        if let Some(pem) = &self.roots {
            let mut store = RootCertStore::empty();
            for certificate in certificates("root_certificates", pem)? {
                let added = store.add(certificate);
                added.map_err(|_| wrong("root_certificates: one is no certificate of X.509"))?;
            }
        }
        let Some(own) = &self.own else { return Ok(()) };
        let chain = certificates("client_certificate", &own.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&own.key).map_err(|error| match error {
            Broken::NoItemsFound => wrong(
                "client_certificate: the key's PEM holds no private key that is not encrypted",
            ),
            _ => wrong("client_certificate: the key's PEM cannot be read"),
        })?;
        ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|_| wrong("the crypto provider knows no version of TLS"))?
            .with_root_certificates(RootCertStore::empty())
            .with_client_auth_cert(chain, key)
            .map(drop)
            .map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => {
                    wrong("client_certificate: the key is not the certificate's")
                }
                _ => wrong("client_certificate: certificate or key cannot be used"),
            })
    }
}

fn certificates(what: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    // The error would show a line of what may be a key.
    let read = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let read = read.map_err(|_| wrong(format!("{what}: the PEM cannot be read")))?;
    match read.is_empty() {
        true => Err(wrong(format!("{what}: the PEM holds no certificate"))),
        false => Ok(read),
    }
}

fn wrong(reason: impl Into<String>) -> ConfigError {
    ConfigError::knob("tls", reason)
}

/// What TLS is computed with: what the program has chosen, else `ring`, which is installed, since
/// redis-rs's connections panic where there is none.
pub(super) fn provider() -> Arc<CryptoProvider> {
    if let Some(chosen) = CryptoProvider::get_default() {
        return Arc::clone(chosen);
    }
    let ours = ring::default_provider();
    // It fails where somebody else was faster; then his stays.
    let _: Result<_, _> = ours.clone().install_default();
    CryptoProvider::get_default().map_or_else(|| Arc::new(ours), Arc::clone)
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("root_certificates", &self.roots.is_some())
            .field("client_certificate", &self.own.is_some())
            .finish()
    }
}
