//! How a handle's transactions behave.
//!
//! Never: settings of the pool, which are the session manager's.

use std::fmt;
use std::sync::Arc;

use crate::retry::RetryPolicy;

/// When MULTI is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Begin {
    /// With the commands: one round trip on a connection that answered within `trust_window`, two
    /// on an older one. A connection that dies inside the window is told as
    /// [`NotSent`](crate::CommitError::NotSent) or [`InDoubt`](crate::CommitError::InDoubt).
    #[default]
    Deferred,
    /// At once, and answered before any command leaves. There is no window; it costs a round
    /// trip. A guard that then waits for longer than `trust_window` has MULTI answered anew when
    /// it commits, unless it watches or has sent a chunk ahead: then there is nothing left to ask
    /// with.
    Immediate,
}

/// How a handle's transactions behave. What is not set stays as it was on the handle.
///
/// ```no_run
/// use rediscope::{Begin, RetryPolicy, SessionManager, TransactionOptions};
///
/// # fn main() -> Result<(), rediscope::ConfigError> {
/// let sessions = SessionManager::connect("redis://127.0.0.1/")?;
/// let transfers = sessions.transactional().with(
///     TransactionOptions::new()
///         .name("transfer")
///         .begin(Begin::Immediate)
///         .retry(RetryPolicy::default().attempts(5)),
/// );
/// # Ok(()) }
/// ```
#[derive(Clone, Default)]
pub struct TransactionOptions {
    name: Option<Arc<str>>,
    begin: Option<Begin>,
    retry: Option<RetryPolicy>,
}

impl TransactionOptions {
    /// Nothing set: everything as the handle has it.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the scope is called in reports, warnings and spans. Default: nothing; the code place
    /// tells it apart.
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// When MULTI is sent. Default: [`Begin::Deferred`].
    pub fn begin(mut self, begin: Begin) -> Self {
        self.begin = Some(begin);
        self
    }

    /// How often `run` and `watch(..).run` try. Default: [`RetryPolicy::default`].
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = Some(policy);
        self
    }

    /// These, overlaid by what `over` sets.
    pub(crate) fn overlaid(&self, over: Self) -> Self {
        Self {
            name: over.name.or_else(|| self.name.clone()),
            begin: over.begin.or(self.begin),
            retry: over.retry.or(self.retry),
        }
    }

    pub(crate) fn scope_name(&self) -> Option<Arc<str>> {
        self.name.clone()
    }

    pub(crate) fn is_immediate(&self) -> bool {
        self.begin == Some(Begin::Immediate)
    }

    pub(crate) fn policy(&self) -> RetryPolicy {
        self.retry.unwrap_or_default()
    }
}

impl fmt::Debug for TransactionOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransactionOptions")
            .field("name", &self.name)
            .field("begin", &self.begin)
            .field("retry", &self.retry)
            .finish()
    }
}
