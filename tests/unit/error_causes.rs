//! Errors as text: alone without their causes, in full with each cause once.
//!
//! Guarantee: reports

use std::panic::Location;
use std::time::Duration;

use crate::error::checkout::CheckoutTimeout;
use crate::error::{
    Applied, CheckoutError, CommitError, ConfigError, ConnectionError, ConnectionErrorKind, Error,
    InDoubt, LockError, PinExpired, ReplyError, ServerError, UnresolvedReason,
};

/// Of every public error: alone it holds no cause of its own, in full it holds each one once.
#[test]
fn a_cause_is_shown_once_and_only_in_the_alternate_form() {
    let connection = || ConnectionError::new(ConnectionErrorKind::Closed, "reset by peer");
    let connect =
        || CheckoutError::Connect { waited: Duration::from_secs(1), source: connection() };
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
        || Error::Lost { during: "GET".to_owned(), applied: Applied::No, source: connection() };
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
        (Box::new(connection()), 0),
        (Box::new(connect()), 1),
        (Box::new(timeout(None)), 0),
        (Box::new(timeout(Some(connection()))), 1),
        (Box::new(CommitError::not_sent(lost())), 2),
        (Box::new(CommitError::lost_before_exec(connection())), 2),
        (Box::new(CommitError::InDoubt(InDoubt::new(connection()))), 1),
        (Box::new(CommitError::PartlyApplied { replies }), 1),
        (Box::new(CommitError::AlreadyCommitted), 0),
        (Box::new(expired), 0),
        (Box::new(LockError::Connection { during: "acquire", source: connection() }), 1),
        (Box::new(UnresolvedReason::Unreachable(connection())), 1),
        (Box::new(failed), 0),
        (Box::new(ConfigError::setting("max_size", "must be at least 1")), 0),
        (Box::new(crate::Error::from(connect())), 1),
        (Box::new(crate::Error::from(CommitError::not_sent(lost()))), 2),
        (Box::new(crate::Error::from(CommitError::not_sent(connect()))), 1),
        (Box::new(crate::Error::from(CommitError::from(expired))), 0),
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
