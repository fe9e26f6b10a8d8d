//! The certificates for TLS, as plain data. `Debug` shows no key and no certificate.

use std::fmt;

/// Root certificates and client certificate for TLS: the argument of
/// [`Builder::tls`](crate::Builder::tls) (feature `tls-rustls`).
///
/// All parts are PEM, as plain data; [`build`](crate::Builder::build) parses and checks them. A new
/// value trusts the system's root certificates and presents no client certificate, as a `rediss://`
/// address does without this setting.
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
    pub(crate) roots: Option<Vec<u8>>,
    pub(crate) own: Option<Own>,
}

#[derive(Clone)]
pub(crate) struct Own {
    pub(crate) certificate: Vec<u8>,
    pub(crate) key: Vec<u8>,
}

impl Tls {
    /// Trusts the system's root certificates, and presents no certificate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the certificates to trust, one or more, **in place of** the system's.
    pub fn root_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.roots = Some(pem.into());
        self
    }

    /// Sets the certificate to present and its private key (PKCS#8, PKCS#1 or SEC1, not encrypted).
    /// The certificate may be followed by those between it and the authority.
    pub fn client_certificate(
        mut self,
        certificate_pem: impl Into<Vec<u8>>,
        key_pem: impl Into<Vec<u8>>,
    ) -> Self {
        self.own = Some(Own { certificate: certificate_pem.into(), key: key_pem.into() });
        self
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("root_certificates", &self.roots.is_some())
            .field("client_certificate", &self.own.is_some())
            .finish()
    }
}
