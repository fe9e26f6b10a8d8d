//! The certificates that TLS goes by, as plain data.
//!
//! Never: a key or a certificate in `Debug`.

use std::fmt;

/// Root certificates and client certificate of TLS: the argument of
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
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("root_certificates", &self.roots.is_some())
            .field("client_certificate", &self.own.is_some())
            .finish()
    }
}
