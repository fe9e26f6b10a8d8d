//! The side of the library that the shared soaks run on: threads. The soak of tasks has another one.

use rediscope::Builder;
use rediscope::commands::QueueCommands;
use rediscope::error::ConfigError;

pub(crate) use rediscope::lock::{Lock, LockGuard};
pub(crate) use rediscope::{SessionManager, Transactional};

/// `builder.build()` on this side.
pub(crate) trait BuildSide {
    fn build_side(self) -> Result<SessionManager, ConfigError>;
}

impl BuildSide for Builder {
    fn build_side(self) -> Result<SessionManager, ConfigError> {
        self.build()
    }
}

/// The guard, where a target of commands of any kind is wanted.
pub(crate) fn queue(tx: &mut rediscope::Transaction) -> &mut impl QueueCommands {
    tx
}
