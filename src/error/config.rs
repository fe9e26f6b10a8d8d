//! The reason why a setting cannot work.

/// The reason why a setting cannot work. No connection was opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The address could not be parsed. Its text is not repeated: it may contain a password.
    #[error("the address cannot be used: {reason}")]
    #[non_exhaustive]
    Address {
        /// The reason why it is not valid.
        reason: String,
    },
    /// A `Config` could not be read: it has an unknown name, a name twice, or no names at all.
    /// (Feature `serde`.)
    #[error("the configuration cannot be used: {reason}")]
    #[non_exhaustive]
    Configuration {
        /// The reason why it is not valid.
        reason: String,
    },
    /// The system started no thread for the session manager, because of a limit of threads or
    /// memory (`RLIMIT_NPROC`, a container's `pids` limit). The settings are valid.
    #[error("the system started no thread for the session manager: {reason}")]
    #[non_exhaustive]
    Threads {
        /// The system's error.
        reason: String,
    },
    /// A setting, or several together, cannot work.
    #[error("{setting}: {reason}")]
    #[non_exhaustive]
    Setting {
        /// The builder's method.
        setting: &'static str,
        /// The reason why its value cannot work.
        reason: String,
    },
}

impl ConfigError {
    pub(crate) fn threads(error: &std::io::Error) -> Self {
        Self::Threads { reason: error.to_string() }
    }

    pub(crate) fn setting(setting: &'static str, reason: impl Into<String>) -> Self {
        Self::Setting { setting, reason: reason.into() }
    }

    /// The builder's method whose value cannot work; `None` for other errors.
    pub fn setting_name(&self) -> Option<&'static str> {
        match self {
            Self::Setting { setting, .. } => Some(setting),
            Self::Address { .. } | Self::Configuration { .. } | Self::Threads { .. } => None,
        }
    }
}
