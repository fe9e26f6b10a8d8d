//! How errors are worded: causes only where they are asked for, numbers as a reader wants them.
//!
//! Never: a cause twice.

use std::error::Error;
use std::fmt;
use std::time::Duration;

/// Writes the causes of `error` behind its own text, where the alternate form (`{:#}`) is asked for.
pub(crate) fn causes(error: &dyn Error, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if !f.alternate() {
        return Ok(());
    }
    let mut cause = error.source();
    while let Some(error) = cause {
        write!(f, ": {error}")?;
        cause = error.source();
    }
    Ok(())
}

/// `Display` of an error out of its own `text`, with its causes in the alternate form.
macro_rules! display {
    ($($error:ty),+) => {$(
        impl std::fmt::Display for $error {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.text(f)?;
                $crate::error::text::causes(self, f)
            }
        }
    )+};
}
pub(crate) use display;

/// A duration with two digits, or with all of its whole units where these are more.
pub(crate) fn brief(duration: Duration) -> impl fmt::Display {
    Brief(duration)
}

struct Brief(Duration);

impl fmt::Display for Brief {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u128); 4] =
            [("s", 1_000_000_000), ("ms", 1_000_000), ("µs", 1_000), ("ns", 1)];
        let nanos = self.0.as_nanos();
        for (unit, size) in UNITS {
            // A tenth of the unit is the last digit shown, and only below ten of them.
            let tenths = (nanos * 10 + size / 2) / size;
            let whole = (nanos + size / 2) / size;
            if (10..100).contains(&tenths) && !tenths.is_multiple_of(10) {
                return write!(f, "{}.{}{unit}", tenths / 10, tenths % 10);
            }
            if tenths >= 10 {
                return write!(f, "{whole}{unit}");
            }
        }
        f.write_str("0s")
    }
}

/// A number and what it counts, with an `s` where it is not one.
pub(crate) fn count(number: usize, what: &str) -> impl fmt::Display {
    Count(number, what)
}

struct Count<'w>(usize, &'w str);

impl fmt::Display for Count<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}{}", self.0, self.1, if self.0 == 1 { "" } else { "s" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_digits_or_all_of_their_whole_units() {
        for (duration, shown) in [
            (Duration::ZERO, "0s"),
            (Duration::from_nanos(7), "7ns"),
            (Duration::from_nanos(1_250), "1.3µs"),
            (Duration::from_micros(29_998), "30ms"),
            (Duration::from_micros(999_960), "1s"),
            (Duration::from_millis(250), "250ms"),
            (Duration::from_millis(1_002), "1s"),
            (Duration::from_millis(1_250), "1.3s"),
            (Duration::from_millis(28_512), "29s"),
            (Duration::from_secs(3600), "3600s"),
            (Duration::MAX, "18446744073709551616s"),
        ] {
            assert_eq!(brief(duration).to_string(), shown, "{duration:?}");
        }
        assert_eq!(count(1, "command").to_string(), "1 command");
        assert_eq!(count(0, "command").to_string(), "0 commands");
    }

    /// Of every public error: alone it holds no cause of its own, in full it holds each one once.
    #[test]
    fn a_cause_is_shown_once_and_only_where_it_is_asked_for() {
        use std::panic::Location;

        use crate::error::checkout::CheckoutTimeout;
        use crate::error::in_doubt::{InDoubt, UnresolvedReason};
        use crate::error::*;

        let link = || ConnectionError::new(ConnectionErrorKind::Closed, "reset by peer");
        let connect = || CheckoutError::Connect { waited: Duration::from_secs(1), source: link() };
        let timeout = |last| {
            CheckoutError::Timeout(Box::new(CheckoutTimeout {
                waited: Duration::from_millis(1_234),
                max_size: 8,
                in_use: 8,
                idle: 0,
                waiters: 1,
                holders: Vec::new(),
                last_connect_error: last,
            }))
        };
        let lost =
            || Error::Lost { during: "GET".to_owned(), applied: Applied::No, source: link() };
        let failed = ReplyError::Failed {
            index: 1,
            command: "INCR".to_owned(),
            error: ServerError::from_code("WRONGTYPE"),
        };
        let values = vec![redis::Value::Okay, redis::Value::Nil];
        let replies = crate::Replies::new(1, values, Vec::new(), vec![failed.clone()]);
        let begun_at = Location::caller();
        let expired = PinExpired::new(Duration::from_secs(61), Duration::from_secs(60), begun_at);
        let errors: Vec<(Box<dyn std::error::Error>, usize)> = vec![
            (Box::new(link()), 0),
            (Box::new(connect()), 1),
            (Box::new(timeout(None)), 0),
            (Box::new(timeout(Some(link()))), 1),
            (Box::new(CommitError::not_sent(lost())), 2),
            (Box::new(CommitError::not_sent(connect())), 2),
            (Box::new(CommitError::lost_before_exec(link())), 2),
            (Box::new(CommitError::InDoubt(InDoubt::new(link()))), 1),
            (Box::new(CommitError::PartlyApplied { replies }), 1),
            (Box::new(CommitError::AlreadyCommitted), 0),
            (Box::new(CommitError::PinExpired(expired)), 0),
            (Box::new(LockError::Checkout(connect())), 1),
            (Box::new(LockError::Connection { during: "acquire", source: link() }), 1),
            (Box::new(UnresolvedReason::Unreachable(link())), 1),
            (Box::new(failed), 0),
            (Box::new(ConfigError::setting("max_size", "must be at least 1")), 0),
            (Box::new(crate::Error::from(connect())), 1),
            (Box::new(crate::Error::from(CommitError::not_sent(lost()))), 2),
            (Box::new(crate::Error::from(LockError::Checkout(connect()))), 1),
            (Box::new(lost()), 1),
        ];
        for (error, causes) in errors {
            let (alone, chain) = (error.to_string(), format!("{error:#}"));
            let mut expected = alone.clone();
            let (mut cause, mut found) = (error.source(), 0);
            while let Some(error) = cause {
                assert!(!alone.contains(&error.to_string()), "{alone}");
                assert_eq!(chain.matches(&error.to_string()).count(), 1, "{chain}");
                expected = format!("{expected}: {error}");
                (cause, found) = (error.source(), found + 1);
            }
            assert_eq!(chain, expected);
            assert_eq!(found, causes, "{chain}");
        }
    }
}
