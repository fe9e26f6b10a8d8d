//! The lock that a handle refers to: how it is acquired, and its other requests.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::Value;

use crate::error::any::Error;
use crate::error::lock::LockError;
use crate::lock::acquire::{Permits, acquire, adopt, random};
use crate::lock::client::{ScriptReplies, Via, unexpected_reply};
use crate::lock::held::AcquiredLock;
use crate::lock::io::{LockIo, Renewals as _};
use crate::protocol::lock::acquire::{LockHolder, LockMode, LockRequest, held_permits, peeked};
use crate::protocol::lock::hold_token::HoldToken;
use crate::protocol::lock::keys::LockKeys;
use crate::protocol::lock::script::{AVAILABLE, FORCE, PEEK, PERMITS, Script, ScriptCall};
use crate::protocol::replication::Durability;

const DEFAULT_LEASE: Duration = Duration::from_secs(30);
const SHORTEST_LEASE: Duration = Duration::from_millis(10);
const LONGEST_LEASE: Duration = Duration::from_secs(24 * 60 * 60);
const LONGEST_LABEL: usize = 256;

/// The lock that a handle refers to.
pub(crate) struct LockTarget<M: LockIo> {
    pub(crate) manager: Arc<M>,
    pub(crate) request: LockRequest,
    /// No call waits or sends a request later.
    pub(crate) deadline: Option<Instant>,
    /// Maximum number of holders. All clones of a handle share it.
    permits: Arc<Permits<M>>,
    refused: Option<Error>,
}

impl<M: LockIo> Clone for LockTarget<M> {
    fn clone(&self) -> Self {
        Self {
            manager: Arc::clone(&self.manager),
            request: self.request.clone(),
            deadline: self.deadline,
            permits: Arc::clone(&self.permits),
            refused: self.refused.clone(),
        }
    }
}

impl<M: LockIo> LockTarget<M> {
    pub(crate) fn new(
        manager: Arc<M>,
        family: &str,
        name: &str,
        mode: LockMode,
        permits: u32,
    ) -> Self {
        let (prefix, in_cluster) = (&manager.settings().prefix, manager.client().is_in_cluster());
        let names = Arc::new(LockKeys::new(prefix, family, name, in_cluster));
        let refused = match permits {
            _ if name.is_empty() => {
                Some(Error::lock_refused("name", "a lock's name must not be empty"))
            }
            0 => Some(no_permit()),
            _ => None,
        };
        let request = LockRequest {
            names,
            mode,
            permits: 1,
            lease: DEFAULT_LEASE,
            renewed: true,
            fair: false,
            label: None,
            replicas: None,
        };
        let permits = Arc::new(Permits::new(permits));
        Self { manager, request, deadline: None, permits, refused }
    }

    pub(crate) fn set_lease(&mut self, lease: Duration) {
        if !(SHORTEST_LEASE..=LONGEST_LEASE).contains(&lease) {
            let reason = "must be between 10 ms and a day";
            self.refused.get_or_insert(Error::lock_refused("lease", reason));
        }
        self.request.lease = lease;
    }

    /// Has each acquisition take so many permits.
    pub(crate) fn set_permits_at_once(&mut self, permits: u32) {
        match permits {
            0 => {
                let reason = "an acquisition takes at least one permit";
                self.refused.get_or_insert(Error::lock_refused("permits", reason));
            }
            1 => {}
            _ if self.request.mode != LockMode::Semaphore => {
                self.refused.get_or_insert(no_semaphore());
            }
            _ => {}
        }
        self.request.permits = permits;
    }

    pub(crate) fn set_label(&mut self, label: Arc<str>) {
        if label.len() > LONGEST_LABEL {
            let reason = "must not be longer than 256 bytes";
            self.refused.get_or_insert(Error::lock_refused("label", reason));
        }
        self.request.label = Some(label);
    }

    pub(crate) fn set_replicas(&mut self, replicas: u32, timeout: Duration) {
        let timeout = timeout.min(LONGEST_LEASE);
        self.request.replicas = Some(Durability::Replicas { replicas, timeout });
    }

    /// Shows no name.
    pub(crate) fn show(&self, of: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(of)
            .field("mode", &self.request.mode)
            .field("lease", &self.request.lease)
            .field("label", &self.request.label)
            .finish_non_exhaustive()
    }

    /// Acquires the lock, and waits up to `wait` for it. If the future is dropped, the lock is
    /// released.
    pub(crate) async fn acquire(&self, wait: Duration) -> Result<AcquiredLock<M>, Error> {
        self.check()?;
        let wait = match self.left() {
            Some(left) if left.is_zero() => return Err(late()),
            left => left.map_or(wait, |left| left.min(wait)),
        };
        acquire(&self.manager, (&self.request, &self.permits), wait).await
    }

    /// Adopts a hold that another process has handed over. If the future is dropped, the hold is
    /// released if it was adopted.
    pub(crate) async fn adopt(&self, token: &HoldToken) -> Result<AcquiredLock<M>, Error> {
        self.check()?;
        let wait = self.manager.settings().checkout_timeout;
        let wait = match self.left() {
            Some(left) if left.is_zero() => return Err(late()),
            left => left.map_or(wait, |left| left.min(wait)),
        };
        adopt(&self.manager, (&self.request, &self.permits), token, wait).await
    }

    /// Returns the holder; of several holders, the one whose lease ends first.
    pub(crate) async fn holder(&self) -> Result<Option<LockHolder>, Error> {
        let names = &self.request.names;
        let call = ScriptCall::new(&PEEK, [&names.holders, &names.info], [""; 0]);
        let reply = self.ask("holder", call).await?;
        peeked(&reply).ok_or_else(|| unexpected_reply("holder"))
    }

    /// Returns the number of free permits of a semaphore.
    pub(crate) async fn available(&self) -> Result<u32, Error> {
        if self.request.mode != LockMode::Semaphore {
            return Err(no_semaphore());
        }
        let names = &self.request.names;
        let call = ScriptCall::new(&AVAILABLE, [&names.holders, &names.info], [""; 0]);
        let reply = self.ask("available", call).await?;
        let (used, kept) = held_permits(&reply).ok_or_else(|| unexpected_reply("available"))?;
        Ok(kept.unwrap_or_else(|| self.permits.get()).saturating_sub(used))
    }

    /// Takes the lock away from its holders. If the future is dropped, that may happen or not.
    pub(crate) async fn force_release(&self) -> Result<bool, Error> {
        match self.ask_once("force_release", &FORCE, None).await? {
            Value::Int(held) => {
                tracing::warn!(holders = held, "lock forced");
                Ok(held > 0)
            }
            _ => Err(unexpected_reply("force_release")),
        }
    }

    /// Changes the number of permits of a semaphore. If the future is dropped, the server may have
    /// the new number, or get it later. This handle keeps its former number.
    pub(crate) async fn set_permits(&self, permits: u32) -> Result<(), Error> {
        self.may_ask()?;
        if self.request.mode != LockMode::Semaphore {
            return Err(no_semaphore());
        }
        if permits == 0 {
            return Err(no_permit());
        }
        let change = async {
            match self.ask_once("set_permits", &PERMITS, Some(permits)).await? {
                Value::Int(_) => Ok(()),
                _ => Err(unexpected_reply("set_permits")),
            }
        };
        self.permits.change(permits, self.deadline, change).await
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        self.refused.clone().map_or(Ok(()), Err)
    }

    fn may_ask(&self) -> Result<(), Error> {
        self.manager.settings().here()?;
        self.check()
    }

    /// The time until the deadline, if there is one.
    fn left(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    async fn ask(&self, during: &'static str, call: ScriptCall) -> Result<Value, Error> {
        let mut reply = self.ask_for(during, call).await?;
        reply.values.pop().ok_or_else(|| unexpected_reply(during))
    }

    /// Sends a call that changes the lock without an owner token. The server remembers its reply, so that no
    /// copy of it has a second effect.
    async fn ask_once(
        &self,
        during: &'static str,
        script: &'static Script,
        permits: Option<u32>,
    ) -> Result<Value, Error> {
        self.may_ask()?;
        let (names, manager) = (&self.request.names, &self.manager);
        // The renewal deletes what the server remembers.
        let _begun = manager.renewals().begin_acquisition()?;
        let done = names.done(&format!("{:032x}", random()?));
        let keys = names.state().into_iter().chain([&done]);
        let remember = manager.remember(Duration::ZERO, true).as_millis().to_string();
        let arguments = [remember, names.wake.to_string()].into_iter();
        let arguments = arguments.chain(permits.map(|permits| permits.to_string()));
        let mut reply = self.ask_for(during, ScriptCall::new(script, keys, arguments)).await?;
        if !reply.repeated {
            manager.renewals().answered(done);
        }
        reply.values.pop().ok_or_else(|| unexpected_reply(during))
    }

    async fn ask_for(
        &self,
        during: &'static str,
        call: ScriptCall,
    ) -> Result<ScriptReplies, Error> {
        self.may_ask()?;
        let limit = self.manager.call_deadline();
        let limit = self.deadline.map_or(limit, |deadline| deadline.min(limit));
        self.manager.client().ask_one(during, &call, Via::PooledFirst, limit).await
    }
}

/// The error of an acquisition that begins after its deadline.
fn late() -> Error {
    LockError::Timeout { waited: Duration::ZERO, holder: None }.into()
}

fn no_semaphore() -> Error {
    Error::lock_refused("permits", "only a semaphore has permits")
}

fn no_permit() -> Error {
    Error::lock_refused("permits", "a semaphore has at least one permit")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::held::release_dropped;
    use crate::lock::manager::LockManager;

    fn assert_send<T: Send>(_: T) {}

    /// This compiles only if the futures can move between threads on every side.
    fn futures_are_send<M: LockIo>(target: &LockTarget<M>, held: AcquiredLock<M>) {
        assert_send(target.acquire(Duration::ZERO));
        assert_send(async { target.adopt(&held.lock_lease().hold_token()).await });
        assert_send(target.holder());
        assert_send(target.available());
        assert_send(target.force_release());
        assert_send(target.set_permits(1));
        assert_send(held.ensure_held());
        let (manager, lock_lease) = (Arc::clone(&target.manager), Arc::clone(held.lock_lease()));
        let limit = target.manager.call_deadline();
        assert_send(release_dropped(manager, lock_lease, Some(limit)));
        assert_send(held.release(limit));
    }

    #[test]
    fn a_locks_futures_can_move_between_threads() {
        let _: fn(&LockTarget<LockManager>, AcquiredLock<LockManager>) = futures_are_send;
    }
}
