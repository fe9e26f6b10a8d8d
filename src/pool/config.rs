//! The settings that the pools of one purpose share.

use std::sync::Arc;

use scheduled_thread_pool::ScheduledThreadPool;

use crate::logging::deferred::LogThread;
use crate::logging::rate_limit::RateLimits;
use crate::protocol::handshake::Purpose;
use crate::settings::settings::Settings;
use crate::status::counters::Counters;

/// The log settings of a session manager.
#[derive(Debug, Default)]
pub(crate) struct Logging {
    pub(crate) log_thread: Arc<LogThread>,
    pub(crate) rate_limits: RateLimits,
}

/// The settings that the pools of one purpose share.
#[derive(Clone)]
pub(crate) struct PoolConfig {
    pub(crate) name: &'static str,
    pub(crate) purpose: Purpose,
    pub(crate) settings: Arc<Settings>,
    pub(crate) threads: Arc<ScheduledThreadPool>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) logging: Arc<Logging>,
    /// Whether a checkout fails as soon as its server is unreachable, because another one may have
    /// taken over.
    pub(crate) fail_fast: bool,
}
