//! The side of the library that the shared soaks run on: threads. The soak of tasks has another one.

use rediscope::Builder;
use rediscope::error::ConfigError;

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
