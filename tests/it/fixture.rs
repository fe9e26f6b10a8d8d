//! The times of a test that all modules share.

use std::time::Duration;

/// Time within which an awaited event must happen, far more than it needs on a busy machine. A test
/// that waits for longer fails.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Duration longer than any test: of a trust window, a lease or a scope that must not end.
pub(crate) const LONG: Duration = Duration::from_secs(60 * 60);

/// Time that a busy machine may add to a call with a short timeout.
pub(crate) const SLACK: Duration = Duration::from_millis(1500);
