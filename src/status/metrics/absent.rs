//! The types without the feature `metrics`: empty, and without an effect.

use std::time::Instant;

use scheduled_thread_pool::ScheduledThreadPool;

use crate::error::checkout::CheckoutError;

/// Without the feature no value is larger for it.
const _: () = assert!(
    size_of::<(Started, InUse, PoolMetrics, LockMetrics, PoolLevels)>() == 0,
    "a type without the feature has a size"
);

/// When something began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Started;

impl Started {
    #[inline]
    pub(crate) fn now() -> Self {
        Self
    }
}

/// Since when a connection is lent.
#[derive(Debug, Default)]
pub(crate) struct InUse(());

/// The metrics of the pools of one purpose, and of their transactions.
#[derive(Debug, Default)]
pub(crate) struct PoolMetrics;

impl PoolMetrics {
    pub(crate) const ARE_REPORTED: bool = false;

    #[inline]
    pub(crate) fn name(&self, _: &str, _: impl FnOnce() -> String, _: &'static str) {}

    #[inline]
    pub(crate) fn created(&self, _: Started) {}

    #[inline]
    pub(crate) fn checked_out(&self, _: Instant) -> InUse {
        InUse(())
    }

    #[inline]
    pub(crate) fn returned(&self, _: &mut InUse) {}

    #[inline]
    pub(crate) fn refused(&self, _: &CheckoutError) {}

    #[inline]
    pub(crate) fn ended(&self, _: &'static str, _: u32, _: Started) {}

    #[inline]
    pub(crate) fn ended_early(&self, _: &'static str) {}
}

/// The levels of one pool.
#[derive(Debug)]
pub(crate) struct PoolLevels;

impl PoolLevels {
    pub(crate) fn new(_: &PoolMetrics, _: [u32; 2]) -> Self {
        Self
    }

    #[inline]
    pub(crate) fn report(&mut self, _: impl FnOnce() -> [usize; 4]) {}
}

/// The metrics of the locks.
#[derive(Debug, Default)]
pub(crate) struct LockMetrics;

impl LockMetrics {
    pub(crate) fn name_after(&self, _: &PoolMetrics) {}

    #[inline]
    pub(crate) fn acquired(&self, _: Instant) {}

    #[inline]
    pub(crate) fn lost(&self) {}

    pub(crate) fn report(
        &self,
        _: &ScheduledThreadPool,
        _: impl Fn() -> Option<[u64; 2]> + Send + 'static,
    ) {
    }
}
