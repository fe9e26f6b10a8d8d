//! How long the calls of a transaction wait for connections.

use std::time::{Duration, Instant};

use crate::connection::deadline;
use crate::settings::settings::Settings;

/// How long the calls of a transaction wait for connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct WaitLimit {
    /// In place of `checkout_timeout`.
    pub(crate) within: Option<Duration>,
    /// No wait lasts longer.
    pub(crate) until: Option<Instant>,
}

impl WaitLimit {
    /// Whether the settings alone count.
    #[cfg(feature = "tokio")]
    pub(crate) fn is_none(self) -> bool {
        self == Self::default()
    }

    /// The time of one wait.
    pub(crate) fn timeout(self, settings: &Settings) -> Duration {
        self.within.unwrap_or(settings.checkout_timeout)
    }

    /// The deadline of a wait that begins now.
    pub(crate) fn deadline(self, settings: &Settings) -> Instant {
        self.cap(deadline::after(self.timeout(settings)))
    }

    /// The same deadline, or an earlier one.
    pub(crate) fn cap(self, deadline: Instant) -> Instant {
        self.until.map_or(deadline, |until| until.min(deadline))
    }
}
