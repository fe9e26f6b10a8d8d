//! The settings of a session manager, and the checks that they can work together. `Debug` shows no
//! password.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::dns::Resolver;
use crate::error::checkout::CheckoutError;
use crate::error::config::ConfigError;
use crate::process::current::Process;
#[cfg(feature = "tokio")]
use crate::process::tasks::OwnTasks;
use crate::protocol::queue::Limits;
use crate::settings::credentials::Provider;
use crate::settings::table;
#[cfg(feature = "tls-rustls")]
use crate::settings::tls::Tls;

macro_rules! plain {
    ($($(#[$doc:meta])* $name:ident: $type:ty $(as $argument:ty)? = $default:expr;)+) => {
        /// Every setting, with its default. [`Builder`](crate::Builder) sets them; its methods
        /// document the limit that each one sets.
        #[derive(Clone, Debug)]
        pub(crate) struct Settings {
            $(pub(crate) $name: $type,)+
            /// The provider is no plain value, so it is not in the table.
            pub(crate) credentials: Option<Provider>,
            /// Nor is the resolver.
            pub(crate) resolver: Resolver,
            #[cfg(feature = "tls-rustls")]
            pub(crate) tls: Option<Tls>,
            /// The process that made the session manager.
            pub(crate) process: Process,
            /// The tasks that run for the session manager.
            #[cfg(feature = "tokio")]
            pub(crate) tasks: OwnTasks,
        }

        impl Default for Settings {
            fn default() -> Self {
                Self {
                    $($name: $default,)+
                    credentials: None,
                    resolver: Resolver::default(),
                    #[cfg(feature = "tls-rustls")]
                    tls: None,
                    process: Process::here(),
                    #[cfg(feature = "tokio")]
                    tasks: OwnTasks::default(),
                }
            }
        }
    };
}

table::settings!(plain);

impl Settings {
    /// Checks the process, before any lock is taken.
    ///
    /// # Errors
    /// This process is not the one that made the session manager.
    pub(crate) fn here(&self) -> Result<(), CheckoutError> {
        if self.process.is_forked_child() { Err(CheckoutError::OtherProcess) } else { Ok(()) }
    }

    /// Returns whether this process is not the one that made the session manager.
    pub(crate) fn is_forked_child(&self) -> bool {
        self.process.is_forked_child()
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits { commands: self.max_commands, bytes: self.max_bytes }
    }

    /// Returns an error with the name of the first setting that cannot work.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        for (setting, value) in [
            ("max_size", self.max_size as usize),
            ("max_group", self.max_group as usize),
            ("max_leaders", self.max_leaders as usize),
            ("max_merged", self.max_merged as usize),
            ("max_in_flight", self.max_in_flight as usize),
            ("flush_bytes", self.flush_bytes),
            ("max_commands", self.max_commands as usize),
            ("max_bytes", self.max_bytes),
            ("max_watched_keys", self.max_watched_keys as usize),
            ("max_reply_bytes", self.max_reply_bytes),
        ] {
            ensure(value > 0, setting, "must be at least 1")?;
        }
        ensure(
            self.max_size <= MOST_CONNECTIONS,
            "max_size",
            format!(
                "must not be more than {MOST_CONNECTIONS}, which is as many as there are ports"
            ),
        )?;
        ensure(
            self.max_in_flight <= MOST_CONNECTIONS,
            "max_in_flight",
            format!("must not be more than {MOST_CONNECTIONS}"),
        )?;
        ensure(
            self.lanes <= MOST_LANES,
            "lanes",
            format!("must not be more than {MOST_LANES}: more lanes only make smaller writes"),
        )?;
        ensure(
            self.min_idle <= self.max_size,
            "min_idle",
            format!("{} is more than max_size, which is {}", self.min_idle, self.max_size),
        )?;
        for (setting, value) in [
            ("connect_timeout", Some(self.connect_timeout)),
            ("checkout_timeout", Some(self.checkout_timeout)),
            ("response_timeout", Some(self.response_timeout)),
            ("cleanup_timeout", Some(self.cleanup_timeout)),
            ("max_pin_time", Some(self.max_pin_time)),
            ("idle_timeout", self.idle_timeout),
            ("max_lifetime", self.max_lifetime),
            ("pin_warning", self.pin_warning),
            ("tcp_user_timeout", self.tcp_user_timeout),
        ] {
            let Some(value) = value else { continue };
            let millisecond = Duration::from_millis(1);
            ensure(value >= millisecond, setting, "must be at least a millisecond")?;
            ensure(value <= LONGEST, setting, "must not be longer than a day")?;
        }
        ensure(
            self.tcp_keepalive.is_none_or(|time| KEEPALIVE.contains(&time)),
            "tcp_keepalive",
            "must be between a second and 32,767 seconds: the system accepts no other",
        )?;
        ensure(self.poll <= LONGEST_POLL, "poll", "must not be longer than 10 ms")?;
        ensure(
            (Duration::from_secs(1)..=30 * LONGEST).contains(&self.register_ttl),
            "register_ttl",
            "must be between a second and 30 days: a doubt is resolved within it",
        )?;
        ensure(
            !self.prefix.is_empty() && !self.prefix.contains(['{', '}']),
            "prefix",
            "must not be empty, and must not hold braces, which would be a hash tag",
        )?;
        ensure(
            self.client_name.bytes().all(|byte| byte.is_ascii_graphic()),
            "client_name",
            "must be printable ASCII without spaces and line ends: the server takes no other",
        )?;
        let needed = self.connect_timeout + 2 * self.response_timeout;
        ensure(
            needed <= self.checkout_timeout,
            "checkout_timeout",
            format!(
                "{:?} is less than connect_timeout + 2 × response_timeout ({needed:?}): one \
                 silent connection would use it up before a fresh one was tried",
                self.checkout_timeout
            ),
        )
    }
}

fn ensure(
    works: bool,
    setting: &'static str,
    reason: impl Into<String>,
) -> Result<(), ConfigError> {
    if works { Ok(()) } else { Err(ConfigError::setting(setting, reason)) }
}

/// Maximum of a pool's size: a client has no more ports to one address. The pool allocates its
/// memory at once, so the maximum keeps a mistake from ending the process.
pub(crate) const MOST_CONNECTIONS: u32 = 65_535;

/// Maximum number of lanes of a pool.
const MOST_LANES: u32 = 64;

/// Maximum of a timeout, a day: longer than any useful wait, and short enough for every clock.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// What Linux accepts as the idle time before a keepalive probe, which is cut to whole seconds.
const KEEPALIVE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(32_767);

/// Maximum time of polling for one reply. A longer wait is better spent asleep.
const LONGEST_POLL: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(change: impl FnOnce(&mut Settings)) -> Option<&'static str> {
        let mut settings = Settings::default();
        change(&mut settings);
        settings.check().err().and_then(|error| error.setting_name())
    }

    #[test]
    fn the_defaults_work() {
        assert_eq!(setting(|_| {}), None);
    }

    #[test]
    fn what_cannot_work_is_named() {
        assert_eq!(setting(|s| s.max_size = 0), Some("max_size"));
        assert_eq!(setting(|s| s.max_size = MOST_CONNECTIONS), None);
        assert_eq!(setting(|s| s.max_size = MOST_CONNECTIONS + 1), Some("max_size"));
        assert_eq!(setting(|s| s.max_size = u32::MAX), Some("max_size"));
        assert_eq!(setting(|s| s.min_idle = 9), Some("min_idle"));
        assert_eq!(setting(|s| s.cleanup_timeout = Duration::ZERO), Some("cleanup_timeout"));
        assert_eq!(
            setting(|s| s.response_timeout = Duration::from_secs(3)),
            Some("checkout_timeout")
        );
        assert_eq!(setting(|s| s.max_pin_time = Duration::MAX), Some("max_pin_time"));
        assert_eq!(setting(|s| s.idle_timeout = Some(Duration::ZERO)), Some("idle_timeout"));
    }
}
