//! Credentials that change while the program runs. No password appears in `Debug`, an error or a
//! log.

use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use scopeguard::defer;

use crate::sync::lock;
use crate::text::opaque_debug;

/// A user and a password, or a password alone.
///
/// `Debug` shows neither.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Credentials {
    username: Option<String>,
    password: String,
}

impl Credentials {
    /// An ACL user and its password.
    pub fn new(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self { username: Some(username.into()), password: password.into() }
    }

    /// The password of the user `default`, as `requirepass` sets it.
    pub fn password(password: impl Into<String>) -> Self {
        Self { username: None, password: password.into() }
    }

    pub(crate) fn parts(&self) -> (Option<&str>, &str) {
        (self.username.as_deref(), &self.password)
    }
}

opaque_debug!(Credentials);

/// The source of a user and a password that change while the program runs: a file that is written
/// anew, a vault, a cloud's tokens.
/// [`Builder::credentials_provider`](crate::Builder::credentials_provider) takes it.
///
/// New connections authenticate with [`credentials`](Self::credentials). If
/// [`version`](Self::version) has changed since a connection authenticated, that connection sends
/// AUTH again at its next checkout (one round trip). This happens between scopes, never inside one.
/// If the server refuses, the connection keeps its old credentials, a warning is logged, and the
/// next attempt follows a second later.
///
/// Both methods are called by the threads that check out or open connections, several at once.
/// Every checkout calls `version`: it must not block. `credentials` cannot be interrupted, so it
/// should return a value that another thread has fetched. A checkout that re-authenticates waits
/// for it beyond its deadline. A checkout whose connection is being opened waits for at most its
/// `checkout_timeout`. The time in `credentials` does not count against `connect_timeout`.
///
/// [`RotatingCredentials`] is a provider whose credentials the program sets.
///
/// ```
/// use std::fs;
/// use std::time::UNIX_EPOCH;
/// use rediscope::{Credentials, CredentialsProvider};
///
/// /// A password in a file, which is written anew now and then.
/// struct InFile(&'static str);
///
/// impl CredentialsProvider for InFile {
///     fn credentials(&self) -> Result<Credentials, Box<dyn std::error::Error + Send + Sync>> {
///         Ok(Credentials::new("app", fs::read_to_string(self.0)?.trim_end()))
///     }
///
///     fn version(&self) -> u64 {
///         let written = fs::metadata(self.0).and_then(|file| file.modified()).ok();
///         let since = written.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
///         since.map_or(0, |since| since.as_nanos() as u64)
///     }
/// }
/// ```
pub trait CredentialsProvider: Send + Sync + 'static {
    /// Returns the credentials that are valid now.
    ///
    /// # Errors
    /// The reason why no credentials are available. The connection is then not opened; the next
    /// attempt calls the method again, as long as its caller's `checkout_timeout` lasts. The
    /// error's text appears in logs and errors: it must not hold a password.
    fn credentials(&self) -> Result<Credentials, Box<dyn Error + Send + Sync>>;

    /// Returns a number that changes whenever [`credentials`](Self::credentials) returns another
    /// value.
    fn version(&self) -> u64;
}

impl<P: CredentialsProvider + ?Sized> CredentialsProvider for Arc<P> {
    fn credentials(&self) -> Result<Credentials, Box<dyn Error + Send + Sync>> {
        (**self).credentials()
    }

    fn version(&self) -> u64 {
        (**self).version()
    }
}

/// Credentials that the program replaces.
///
/// ```no_run
/// use std::sync::Arc;
/// use rediscope::{Credentials, RotatingCredentials, SessionManager};
///
/// # fn main() -> Result<(), rediscope::error::ConfigError> {
/// let credentials = Arc::new(RotatingCredentials::new(Credentials::new("app", "first")));
/// let sessions = SessionManager::builder("redis://127.0.0.1/")
///     .credentials_provider(Arc::clone(&credentials))
///     .build()?;
/// // Later, once the server has the second password beside the first:
/// credentials.rotate(Credentials::new("app", "second"));
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct RotatingCredentials {
    current: Mutex<Credentials>,
    version: AtomicU64,
}

impl RotatingCredentials {
    /// Creates a provider with the credentials that are valid now.
    pub fn new(first: Credentials) -> Self {
        Self { current: Mutex::new(first), version: AtomicU64::new(0) }
    }

    /// Replaces the credentials. The server should already accept the new ones beside the former.
    pub fn rotate(&self, next: Credentials) {
        *lock(&self.current) = next;
        self.version.fetch_add(1, Ordering::Release);
    }
}

impl CredentialsProvider for RotatingCredentials {
    fn credentials(&self) -> Result<Credentials, Box<dyn Error + Send + Sync>> {
        Ok(lock(&self.current).clone())
    }

    fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }
}

/// The credentials provider of a session manager.
#[derive(Clone)]
pub(crate) struct Provider {
    provider: Arc<dyn CredentialsProvider>,
    /// Start of each call to `credentials` that has not returned yet.
    asked: Arc<Mutex<Vec<Instant>>>,
}

impl Provider {
    pub(crate) fn new(provider: impl CredentialsProvider) -> Self {
        Self { provider: Arc::new(provider), asked: Arc::default() }
    }

    pub(crate) fn version(&self) -> u64 {
        self.provider.version()
    }

    /// Returns how long the oldest such call has lasted, if there is one.
    pub(crate) fn silent_for(&self) -> Option<Duration> {
        lock(&self.asked).iter().map(Instant::elapsed).max()
    }

    pub(crate) fn credentials(&self) -> Result<Credentials, Box<dyn Error + Send + Sync>> {
        let begun = Instant::now();
        lock(&self.asked).push(begun);
        defer! {
            let mut asked = lock(&self.asked);
            if let Some(at) = asked.iter().position(|other| *other == begun) {
                asked.swap_remove(at);
            }
        }
        self.provider.credentials()
    }
}

opaque_debug!(Provider);
