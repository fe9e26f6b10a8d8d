//! Several locks by name: all of them or none.
//!
//! The names are acquired one after another, in the order of their bytes. So no two callers wait for each
//! other, each with a lock that the other one needs, in whatever slots and on whatever masters the locks
//! are: in a cluster one script for all names would be refused. A failure releases what was acquired before
//! it. Each name costs a round trip.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::any::Error;
use crate::error::applied::Applied;
use crate::error::lock::LockError;
use crate::lock::acquire::maybe_kept;
use crate::lock::held::{AcquiredLock, Unreleased};
use crate::lock::io::LockIo;
use crate::lock::target::LockTarget;
use crate::protocol::lock::acquire::LockMode;

/// The locks that a handle refers to, in the order of their names.
pub(crate) struct AllTarget<M: LockIo> {
    pub(crate) manager: Arc<M>,
    targets: Vec<(Arc<str>, LockTarget<M>)>,
}

impl<M: LockIo> Clone for AllTarget<M> {
    fn clone(&self) -> Self {
        Self { manager: Arc::clone(&self.manager), targets: self.targets.clone() }
    }
}

/// Locks that were acquired together, each with its name.
pub(crate) type HeldAll<M> = Vec<(Arc<str>, AcquiredLock<M>)>;

/// What became of each lock that was acquired together with others.
pub(crate) type ReleasedAll = Vec<(Arc<str>, Result<(), Error>)>;

impl<M: LockIo> AllTarget<M> {
    /// A name that is repeated counts once.
    pub(crate) fn new(manager: &Arc<M>, names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let names: BTreeSet<Arc<str>> =
            names.into_iter().map(|name| name.as_ref().into()).collect();
        let target = |name: Arc<str>| {
            let (manager, mode) = (Arc::clone(manager), LockMode::Exclusive);
            let target = LockTarget::new(manager, "lock", &name, mode, 1);
            (name, target)
        };
        Self { manager: Arc::clone(manager), targets: names.into_iter().map(target).collect() }
    }

    /// Sets an option of all locks.
    pub(crate) fn set(mut self, change: impl Fn(&mut LockTarget<M>)) -> Self {
        self.targets.iter_mut().for_each(|(_, target)| change(target));
        self
    }

    /// The number of locks.
    pub(crate) fn count(&self) -> usize {
        self.targets.len()
    }

    /// Acquires all locks, and waits up to `wait` for them. If the future is dropped, those that were
    /// acquired are released.
    pub(crate) async fn acquire(&self, wait: Duration) -> Result<HeldAll<M>, Error> {
        if self.targets.is_empty() {
            return Err(Error::lock_refused("names", "there is no name"));
        }
        self.targets.iter().try_for_each(|(_, target)| target.check())?;
        let begun = Instant::now();
        let mut held = HeldAll::with_capacity(self.targets.len());
        for (name, target) in &self.targets {
            let left = wait.saturating_sub(begun.elapsed());
            match target.acquire(left).await {
                Ok(lock) => held.push((Arc::clone(name), lock)),
                Err(error) => {
                    return Err(self.give_back(held, with_whole_wait(error, begun)).await);
                }
            }
        }
        // While one was waited for, another may have been lost.
        let lost = held.iter().find_map(|(_, lock)| lock.lock_lease().lost());
        if let Some(why) = lost {
            return Err(self.give_back(held, Error::lock_lost(why)).await);
        }
        Ok(held)
    }

    /// Releases what was acquired, within `cleanup_timeout`, and otherwise in the background. Returns the error
    /// of the call.
    async fn give_back(&self, held: HeldAll<M>, mut error: Error) -> Error {
        let limit = Instant::now() + self.manager.settings().cleanup_timeout;
        for (_, released) in release_known(held, limit).await {
            let Err(Unreleased { error: cause, may_be_held }) = released else { continue };
            tracing::debug!(error = %format_args!("{cause:#}"), "a lock of several was not released in order");
            if error.applied() == Applied::No && may_be_held {
                error = maybe_kept(cause, "acquire");
            }
        }
        error
    }
}

/// The time that the caller waited for all locks.
fn with_whole_wait(error: Error, begun: Instant) -> Error {
    match error {
        Error::Lock(LockError::Timeout { holder, .. }) => {
            LockError::Timeout { waited: begun.elapsed(), holder }.into()
        }
        error => error,
    }
}

/// Checks on the server that all locks are held, and extends their leases. A lock that is lost is
/// reported before any other failure. The server is asked no longer than for one lock.
pub(crate) async fn ensure_all<M: LockIo>(
    held: impl Iterator<Item = &AcquiredLock<M>> + Send,
) -> Result<(), Error> {
    let (mut all, mut limit) = (Ok(()), None);
    for lock in held {
        let limit = *limit.get_or_insert_with(|| lock.manager().call_deadline());
        all = worse(all, lock.ensure_held_by(limit).await);
    }
    all
}

/// Releases all locks, the last one first, by `limit` at the latest. What fails continues in the
/// background. If the future is dropped, the locks that are left are released as their drop does it.
pub(crate) async fn release_all<M: LockIo>(held: HeldAll<M>, limit: Instant) -> ReleasedAll {
    let released = release_known(held, limit).await.into_iter();
    released.map(|(name, one)| (name, one.map_err(Error::from))).collect()
}

/// The same; each failure has what it proves.
async fn release_known<M: LockIo>(
    mut held: HeldAll<M>,
    limit: Instant,
) -> Vec<(Arc<str>, Result<(), Unreleased>)> {
    // While one is released, the loss of another one calls no callback any more.
    held.iter_mut().for_each(|(_, lock)| lock.begin_release());
    let mut released = Vec::with_capacity(held.len());
    while let Some((name, lock)) = held.pop() {
        released.push((name, lock.release_known(limit).await));
    }
    released.reverse();
    released
}

/// One result for all locks.
pub(crate) fn all_released(released: ReleasedAll) -> Result<(), Error> {
    let mut all = Ok(());
    for (_, one) in released {
        all = worse(all, one);
    }
    all
}

/// Returns the first failure; a loss comes before any other.
fn worse(all: Result<(), Error>, one: Result<(), Error>) -> Result<(), Error> {
    match (&all, &one) {
        (Ok(()), _) => one,
        (Err(first), Err(error)) if is_lost(error) && !is_lost(first) => one,
        _ => all,
    }
}

fn is_lost(error: &Error) -> bool {
    matches!(error, Error::Lock(LockError::Lost { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::manager::LockManager;

    fn assert_send<T: Send>(_: T) {}

    /// This compiles only if the futures can move between threads on every side.
    fn futures_are_send<M: LockIo>(target: &AllTarget<M>, held: HeldAll<M>, limit: Instant) {
        assert_send(target.acquire(Duration::ZERO));
        assert_send(ensure_all(held.iter().map(|(_, lock)| lock)));
        assert_send(release_all(held, limit));
    }

    #[test]
    fn the_futures_of_several_locks_can_move_between_threads() {
        let _: fn(&AllTarget<LockManager>, HeldAll<LockManager>, Instant) = futures_are_send;
    }

    #[test]
    fn a_loss_is_reported_before_any_other_failure() {
        let lost = || Err(Error::lock_lost(crate::error::lock::LostReason::Gone));
        let refused = || Err(Error::lock_refused("a", "b"));
        let released = |all: Vec<Result<(), Error>>| {
            all_released(all.into_iter().map(|one| ("n".into(), one)).collect())
        };
        assert!(released(vec![Ok(()), Ok(())]).is_ok());
        for all in [vec![refused(), lost(), Ok(())], vec![lost(), refused()], vec![Ok(()), lost()]]
        {
            let one = released(all);
            assert!(matches!(one, Err(Error::Lock(LockError::Lost { .. }))), "{one:?}");
        }
        let one = released(vec![Ok(()), refused()]);
        assert!(matches!(one, Err(Error::Lock(LockError::Refused { .. }))), "{one:?}");
    }
}
