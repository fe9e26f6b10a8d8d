//! What the pools of one purpose have in common.

use std::sync::Arc;

use scheduled_thread_pool::ScheduledThreadPool;

use crate::logging::deferred::LogThread;
use crate::logging::rate_limit::RateLimits;
use crate::protocol::handshake::Purpose;
use crate::settings::settings::Settings;
use crate::status::counters::Counters;

/// Where a session manager logs.
#[derive(Debug, Default)]
pub(crate) struct Logging {
    pub(crate) log_thread: Arc<LogThread>,
    pub(crate) rate_limits: RateLimits,
}

/// What the pools of one purpose have in common.
#[derive(Clone)]
pub(crate) struct PoolConfig {
    pub(crate) name: &'static str,
    pub(crate) purpose: Purpose,
    pub(crate) settings: Arc<Settings>,
    pub(crate) threads: Arc<ScheduledThreadPool>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) logging: Arc<Logging>,
    /// A checkout fails as soon as its server cannot be reached, because another one may have taken
    /// over.
    pub(crate) fail_fast: bool,
}
