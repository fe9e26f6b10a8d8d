//! The error of a scope that was not used for `max_pin_time`.

use std::fmt;
use std::panic::Location;
use std::time::Duration;

use crate::text::{brief, display};

/// The scope was unused for longer than `max_pin_time`: its connection was reclaimed and its
/// transaction discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct PinExpired {
    /// Age of the scope when it was found expired.
    pub held: Duration,
    /// The `max_pin_time` in force.
    pub limit: Duration,
    /// The place that began the scope.
    pub begun_at: &'static Location<'static>,
}

display!(PinExpired);

impl std::error::Error for PinExpired {}

impl PinExpired {
    pub(crate) fn text(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { held, limit, begun_at } = self;
        write!(
            f,
            "the scope begun at {begun_at} was reclaimed: held for {}, and not used for \
             max_pin_time ({}); nothing was applied; shorten the scope or raise max_pin_time",
            brief(*held),
            brief(*limit)
        )
    }

    pub(crate) fn new(
        held: Duration,
        limit: Duration,
        begun_at: &'static Location<'static>,
    ) -> Self {
        Self { held, limit, begun_at }
    }
}
