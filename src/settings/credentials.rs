//! Credentials that change while the program runs. No password appears in `Debug`, an error or a
//! log.

use std::any::Any;
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
#[cfg(feature = "tokio")]
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

#[cfg(feature = "tokio")]
use tokio::sync::oneshot;

use crate::offload::{MOST_THREADS, Offload};
use crate::settings::account::PasswordFile;
#[cfg(feature = "tokio")]
use crate::sync::caught::waking;
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
/// Every checkout of an open connection calls `version` on its own thread, and waits for it: it should not
/// block. If it panics, the connection keeps its identity. No commit or drop calls it to serve a waiting
/// caller, so with a provider of the program's own no caller is sent ahead.
///
/// All other calls are made on up to three threads of the session manager's own, several at once, and no
/// caller waits for them past its deadline. `credentials` cannot be interrupted, so it should return a value
/// that another thread has fetched. A pool of threads that opens a connection waits for it for
/// `checkout_timeout`, and begins no further call while two have lasted longer than `response_timeout`. The time
/// in `credentials` does not count against `connect_timeout`. The thread that listens for released locks calls
/// both itself: while they hang, callers that wait for a lock may hear of its release late.
///
/// A session manager of tasks calls `version` on those threads too. Checkouts that come together share one
/// call of it. If it has not returned within `response_timeout`, or panics, a connection keeps its identity
/// until the next checkout.
/// [`RotatingCredentials`] and `aio::AsyncCredentialsProvider` need no thread.
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

/// Like [`CredentialsProvider`], for a source that is asynchronous. (Feature `tokio`.)
/// [`Builder::async_credentials_provider`](crate::Builder::async_credentials_provider) takes it, for a
/// session manager of tasks.
///
/// The future of [`credentials`](Self::credentials) is polled by the task that opens a connection, or by
/// the caller whose connection authenticates again. It is dropped at the deadline of that checkout, and
/// with its caller. The task that opens a connection drops it after `checkout_timeout`, and the next
/// attempt calls the method again. Several futures may run at once. A panic is a failed attempt.
///
/// [`version`](Self::version) is called at every checkout, on a thread of the runtime: it must not block.
///
/// ```no_run
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use rediscope::{Credentials, SessionManager, aio::AsyncCredentialsProvider};
///
/// /// A token from a service, which another task replaces and counts.
/// struct Tokens(AtomicU64);
///
/// # async fn token() -> std::io::Result<String> { Ok("a token".to_owned()) }
/// impl AsyncCredentialsProvider for Tokens {
///     async fn credentials(&self) -> Result<Credentials, Box<dyn std::error::Error + Send + Sync>> {
///         Ok(Credentials::new("app", token().await?))
///     }
///
///     fn version(&self) -> u64 {
///         self.0.load(Ordering::Acquire)
///     }
/// }
///
/// # fn main() -> Result<(), rediscope::error::ConfigError> {
/// let sessions = SessionManager::builder("redis://127.0.0.1/")
///     .async_credentials_provider(Tokens(AtomicU64::new(0)))
///     .build_async()?;
/// # Ok(()) }
/// ```
#[cfg(feature = "tokio")]
pub trait AsyncCredentialsProvider: Send + Sync + 'static {
    /// Returns the credentials that are valid now. The future may be dropped at any time.
    ///
    /// # Errors
    /// As [`CredentialsProvider::credentials`].
    fn credentials(
        &self,
    ) -> impl Future<Output = Result<Credentials, Box<dyn Error + Send + Sync>>> + Send;

    /// Returns a number that changes whenever [`credentials`](Self::credentials) returns another
    /// value.
    fn version(&self) -> u64;
}

#[cfg(feature = "tokio")]
impl<P: AsyncCredentialsProvider + ?Sized> AsyncCredentialsProvider for Arc<P> {
    fn credentials(
        &self,
    ) -> impl Future<Output = Result<Credentials, Box<dyn Error + Send + Sync>>> + Send {
        (**self).credentials()
    }

    fn version(&self) -> u64 {
        (**self).version()
    }
}

/// What a provider returns.
type Provided = Result<Credentials, Box<dyn Error + Send + Sync>>;

/// Any asynchronous provider.
#[cfg(feature = "tokio")]
trait AnyProvider: Send + Sync {
    fn call(&self) -> Pin<Box<dyn Future<Output = Provided> + Send + '_>>;

    fn number(&self) -> u64;
}

#[cfg(feature = "tokio")]
impl<P: AsyncCredentialsProvider> AnyProvider for P {
    fn call(&self) -> Pin<Box<dyn Future<Output = Provided> + Send + '_>> {
        Box::pin(self.credentials())
    }

    fn number(&self) -> u64 {
        self.version()
    }
}

/// The credentials provider of a session manager.
#[derive(Clone)]
pub(crate) struct Provider {
    source: Source,
    /// Start of each call that has not returned yet.
    asked: Arc<Mutex<Vec<Instant>>>,
    /// Threads for calls that may block.
    threads: Offload,
    #[cfg(feature = "tokio")]
    versions: Arc<Mutex<VersionCalls>>,
}

/// The tasks that wait for the version of a provider that may block.
#[cfg(feature = "tokio")]
#[derive(Default)]
struct VersionCalls {
    /// They came after the running call began, so the next one is for them.
    waiting: Vec<oneshot::Sender<u64>>,
    is_running: bool,
}

#[derive(Clone)]
enum Source {
    /// Read for each connection; its version does not change.
    File(Arc<PasswordFile>),
    /// The provider of this crate, whose methods return at once.
    Rotating(Arc<dyn CredentialsProvider>),
    Blocking(Arc<dyn CredentialsProvider>),
    #[cfg(feature = "tokio")]
    Asynchronous(Arc<dyn AnyProvider>),
}

impl Provider {
    pub(crate) fn new(provider: impl CredentialsProvider) -> Self {
        let any: &dyn Any = &provider;
        match any.is::<RotatingCredentials>() || any.is::<Arc<RotatingCredentials>>() {
            true => Self::of(Source::Rotating(Arc::new(provider))),
            false => Self::of(Source::Blocking(Arc::new(provider))),
        }
    }

    pub(crate) fn file(file: PasswordFile) -> Self {
        Self::of(Source::File(Arc::new(file)))
    }

    #[cfg(feature = "tokio")]
    pub(crate) fn asynchronous(provider: impl AsyncCredentialsProvider) -> Self {
        Self::of(Source::Asynchronous(Arc::new(provider)))
    }

    fn of(source: Source) -> Self {
        Self {
            source,
            asked: Arc::default(),
            threads: Offload::new("rediscope-login"),
            #[cfg(feature = "tokio")]
            versions: Arc::default(),
        }
    }

    /// The same provider in a forked child: the threads belong to the parent.
    pub(crate) fn after_fork(&self) -> Self {
        Self::of(self.source.clone())
    }

    /// Calls the provider, which may block.
    pub(crate) fn version(&self) -> u64 {
        match &self.source {
            Source::File(_) => 0,
            Source::Rotating(provider) | Source::Blocking(provider) => provider.version(),
            #[cfg(feature = "tokio")]
            Source::Asynchronous(provider) => provider.number(),
        }
    }

    /// Returns the version, if the provider does not block. `None`: its call is for another thread.
    pub(crate) fn version_at_once(&self) -> Option<u64> {
        if let Source::Blocking(_) = &self.source {
            return None;
        }
        self.version_unless_it_panics()
    }

    /// Calls the provider on a thread of its own. `None`: it panicked, or has not returned by `deadline`.
    pub(crate) fn version_by(&self, deadline: Instant) -> Option<u64> {
        let provider = self.clone();
        let call = move || {
            let _asked = provider.count();
            provider.version_unless_it_panics()
        };
        self.threads.run(deadline, "the provider has not returned in time", call).ok()?
    }

    /// Calls the provider, which may block. `None`: it panicked.
    pub(crate) fn version_unless_it_panics(&self) -> Option<u64> {
        catch_unwind(AssertUnwindSafe(|| self.version())).ok()
    }

    /// Calls the provider on a thread of its own. Tasks that come while a call runs share the next one.
    /// The receiver gets no version if the call panics.
    #[cfg(feature = "tokio")]
    pub(crate) fn ask_version(&self) -> oneshot::Receiver<u64> {
        let (sender, version) = oneshot::channel();
        let mut calls = lock(&self.versions);
        calls.waiting.push(sender);
        let starts = !std::mem::replace(&mut calls.is_running, true);
        drop(calls);
        let provider = self.clone();
        if starts && self.threads.enqueue(move || provider.pass_versions()).is_err() {
            // There is no thread for it.
            *lock(&self.versions) = VersionCalls::default();
        }
        version
    }

    /// Calls the provider for the tasks that wait, until none does.
    #[cfg(feature = "tokio")]
    fn pass_versions(&self) {
        loop {
            let mut calls = lock(&self.versions);
            let mut waiting = std::mem::take(&mut calls.waiting);
            waiting.retain(|sender| !sender.is_closed());
            if waiting.is_empty() {
                calls.is_running = false;
                return;
            }
            drop(calls);
            let asked = self.count();
            let version = self.version_unless_it_panics();
            drop(asked);
            if let Some(version) = version {
                for sender in waiting {
                    let _: Option<Result<(), u64>> = waking(|| sender.send(version));
                }
            }
        }
    }

    /// The threads for calls of [`credentials`](Self::credentials).
    pub(crate) fn threads(&self) -> &Offload {
        &self.threads
    }

    /// Whether a call of [`credentials`](Self::credentials) may block.
    pub(crate) fn may_block(&self) -> bool {
        matches!(self.source, Source::File(_) | Source::Blocking(_))
    }

    /// Whether the provider is an asynchronous one, which threads cannot call.
    pub(crate) fn is_asynchronous(&self) -> bool {
        match &self.source {
            Source::File(_) | Source::Rotating(_) | Source::Blocking(_) => false,
            #[cfg(feature = "tokio")]
            Source::Asynchronous(_) => true,
        }
    }

    /// Returns how long the oldest such call has lasted, if there is one.
    pub(crate) fn silent_for(&self) -> Option<Duration> {
        lock(&self.asked).iter().map(Instant::elapsed).max()
    }

    /// Returns whether a further call may find no thread: all but one have a call that has lasted longer
    /// than `limit`.
    pub(crate) fn is_occupied(&self, limit: Duration) -> bool {
        let silent = lock(&self.asked).iter().filter(|call| call.elapsed() > limit).count();
        silent >= MOST_THREADS - 1
    }

    /// Calls the provider, which may block. The version is read first: if the credentials are newer than
    /// it, they are sent once more, which does no harm.
    pub(crate) fn credentials(&self) -> (u64, Provided) {
        let _asked = self.count();
        let credentials = |provider: &dyn CredentialsProvider| {
            let version = provider.version();
            (version, provider.credentials())
        };
        match &self.source {
            Source::File(file) => {
                let read = file.read().map_err(|reason| format!("password_file {reason}").into());
                (0, read.map(|password| Credentials { username: file.username.clone(), password }))
            }
            Source::Rotating(provider) | Source::Blocking(provider) => credentials(&**provider),
            #[cfg(feature = "tokio")]
            Source::Asynchronous(_) => (0, Err("the provider is one for tasks".into())),
        }
    }

    /// Calls an asynchronous provider.
    #[cfg(feature = "tokio")]
    pub(crate) async fn credentials_async(&self) -> Provided {
        let _asked = self.count();
        match &self.source {
            Source::File(_) | Source::Rotating(_) | Source::Blocking(_) => {
                Err("the provider is one for threads".into())
            }
            Source::Asynchronous(provider) => provider.call().await,
        }
    }

    /// Counts a call until the value is dropped.
    fn count(&self) -> impl Drop + Send + use<> {
        let (asked, begun) = (Arc::clone(&self.asked), Instant::now());
        lock(&asked).push(begun);
        scopeguard::guard(asked, move |asked| {
            let mut asked = lock(&asked);
            if let Some(at) = asked.iter().position(|other| *other == begun) {
                asked.swap_remove(at);
            }
        })
    }
}

opaque_debug!(Provider);
