//! Every form of the crate as one call, which adds one to [`N`], or acquires and releases a lock.

use crate::fixture::SOON;
use crate::side::SessionManager;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rediscope::redis::{self, Commands};
use rediscope::{Begin, Condition, Error, TransactionOptions, prelude::*};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Single,
    Pipeline,
    Guard,
    Immediate,
    Run,
    Large,
    Grouped,
    Watch,
    Require,
    Once,
    OnceAs,
    Replicas,
    Lock,
    FairLock,
    RwLock,
    Semaphore,
    Fenced,
}

/// Of one slot with the others and with the lock `x`, where there are slots.
pub(crate) const N: &str = "app:{x}:n";
/// Of each lock, so that its script has something to write into the entry for operators.
const LABEL: &str = "a host";

impl Form {
    pub(crate) const ALL: [Self; 17] = [
        Self::Single,
        Self::Pipeline,
        Self::Guard,
        Self::Immediate,
        Self::Run,
        Self::Large,
        Self::Grouped,
        Self::Watch,
        Self::Require,
        Self::Once,
        Self::OnceAs,
        Self::Replicas,
        Self::Lock,
        Self::FairLock,
        Self::RwLock,
        Self::Semaphore,
        Self::Fenced,
    ];

    /// Whether it adds to [`N`].
    pub(crate) fn adds(self) -> bool {
        !matches!(self, Self::Lock | Self::FairLock | Self::RwLock | Self::Semaphore)
    }

    /// Whether it is a transaction and nothing else.
    pub(crate) fn is_block(self) -> bool {
        self.adds() && !matches!(self, Self::Single | Self::Pipeline | Self::Fenced)
    }

    pub(crate) fn play(self, sessions: &SessionManager) -> Result<(), Error> {
        let options = TransactionOptions::new;
        let accounts = sessions.transactional();
        let run = |options| accounts.with(options).run(|tx| Ok(tx.incr(N, 1))).map(drop);
        match self {
            Self::Single => Ok(sessions.pooled().incr(N, 1)?),
            Self::Pipeline => {
                let mut pipeline = redis::pipe();
                pipeline.incr("app:{x}:p", 1).ignore().incr(N, 1).ignore();
                Ok(pipeline.query(&mut sessions.pooled())?)
            }
            Self::Guard => {
                let mut tx = accounts.begin()?;
                tx.incr(N, 1);
                Ok(tx.commit().map(drop)?)
            }
            Self::Immediate => {
                let mut tx = accounts.begin_with(options().begin(Begin::Immediate))?;
                tx.incr(N, 1);
                Ok(tx.commit().map(drop)?)
            }
            Self::Run => run(options()),
            Self::Large => accounts
                .run(|tx| {
                    for _ in 0..3 {
                        tx.incr(format!("app:{{x}}:{}", "x".repeat(200)), 1);
                    }
                    Ok(tx.incr(N, 1))
                })
                .map(drop),
            Self::Grouped => run(options().grouped()),
            Self::Watch => accounts
                .watch([N])
                .run(|read, tx| {
                    let _: Option<i64> = read.get(N)?;
                    Ok(tx.incr(N, 1))
                })
                .map(drop),
            Self::Require => {
                let condition = Condition::not_exists("app:{x}:gone");
                accounts.require(condition).run(|tx| Ok(tx.incr(N, 1))).map(drop)
            }
            Self::Once => run(options().exactly_once()),
            Self::OnceAs => {
                static ORDERS: AtomicU64 = AtomicU64::new(0);
                let order = ORDERS.fetch_add(1, Ordering::Relaxed).to_string();
                run(options().exactly_once_as(order, Duration::from_secs(60)))
            }
            Self::Replicas => run(options().wait_replicas(0, Duration::from_millis(10))),
            Self::Lock => Ok(sessions.lock("x").label(LABEL).acquire(SOON)?.release()?),
            Self::FairLock => {
                Ok(sessions.lock("f").fair().label(LABEL).acquire(SOON)?.release()?)
            }
            Self::RwLock => {
                let lock = sessions.rw_lock("x");
                lock.read().label(LABEL).acquire(SOON)?.release()?;
                Ok(lock.write().label(LABEL).acquire(SOON)?.release()?)
            }
            Self::Semaphore => {
                Ok(sessions.semaphore("x", 2).label(LABEL).acquire(SOON)?.release()?)
            }
            Self::Fenced => {
                let guard = sessions.lock("x").label(LABEL).acquire(SOON)?;
                let written = accounts.fenced_by(&guard).run(|tx| Ok(tx.incr(N, 1)));
                let released = guard.release();
                written?;
                Ok(released?)
            }
        }
    }
}
