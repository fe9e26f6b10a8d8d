//! The times of a held lock's lease, and the calls that renew and release it.
//!
//! A lease never counts as certain for longer than it lasts on the server.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::Value;

use crate::protocol::lock::keys::LockKeys;
use crate::protocol::lock::script::{RELEASE, RENEW, ScriptCall};

/// The time at which a call was sent, and the time that its reply took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timing {
    pub(crate) sent: Instant,
    pub(crate) took: Duration,
}

/// Returns the instant until which a lease is certain that was requested with this timing.
///
/// The server's lease begins when the request arrives: after it was sent, and before the reply. The
/// margin allows for clocks that run differently, and for the time to notify the holder.
pub(crate) fn valid_until(lease: Duration, Timing { sent, took }: Timing) -> Instant {
    let margin = (lease / 20).max(2 * took).min(lease / 2);
    sent + lease - margin
}

/// The times of one lease.
#[derive(Debug)]
pub(crate) struct LeaseTimes {
    /// Length of the lease, and of each renewal.
    lease: Duration,
    pub(crate) valid_until: Instant,
    /// Instant by which the lease has ended on the server, unless it is extended.
    pub(crate) ends_by: Instant,
    /// When the last call was sent that acquired or extended it.
    extended: Instant,
    next_renewal: Instant,
}

impl LeaseTimes {
    pub(crate) fn new(lease: Duration, timing: Timing) -> Self {
        let Timing { sent, took } = timing;
        let valid_until = valid_until(lease, timing);
        let (ends_by, next_renewal) = (sent + took + lease, sent + lease / 3);
        Self { lease, valid_until, ends_by, extended: sent, next_renewal }
    }

    /// Records a renewal. A lock that is lost stays lost (`is_held` is false), although its lease
    /// was extended on the server.
    pub(crate) fn extend(&mut self, timing: Timing, is_held: bool) {
        let renewed = Self::new(self.lease, timing);
        self.ends_by = self.ends_by.max(renewed.ends_by);
        if is_held {
            self.valid_until = self.valid_until.max(renewed.valid_until);
            (self.extended, self.next_renewal) = (renewed.extended, renewed.next_renewal);
        }
    }

    /// Schedules the renewal after one that may fail. `jitter` is from 0.0 to 1.0.
    pub(crate) fn postpone(&mut self, now: Instant, jitter: f64) {
        let pause = (self.lease / 20).clamp(Duration::from_millis(1), Duration::from_millis(100));
        self.next_renewal = now + pause.mul_f64(0.5 + jitter);
    }

    /// Returns when the renewal is due. While a transaction watches the lock (`paused`), that is not in
    /// the first two thirds of the lease.
    pub(crate) fn renewal_due(&self, paused: bool) -> Instant {
        let after = if paused { self.lease / 3 * 2 } else { Duration::ZERO };
        self.next_renewal.max(self.extended + after)
    }
}

/// Returns the call that extends the lease; with a lease of zero, it only checks whether the lock is
/// held. While its slot migrates, the server has it only if every key exists: `labelled`, info does.
pub(crate) fn renew(
    names: &LockKeys,
    owner_token: &str,
    lease: Duration,
    labelled: bool,
) -> ScriptCall {
    let LockKeys { holders, info, alive, is_semaphore, .. } = names;
    let keys = [holders].into_iter().chain((labelled || *is_semaphore).then_some(info));
    let keys = keys.chain(is_semaphore.then_some(alive));
    ScriptCall::new(&RENEW, keys, [owner_token, &lease.as_millis().to_string()])
}

/// Returns whether the token held the lock, by the reply to its renewal or release. `None`: the
/// reply is of another type.
pub(crate) fn was_held(reply: &Value) -> Option<bool> {
    match reply {
        Value::Int(held) => Some(*held == 1),
        Value::Array(values) => values.first().and_then(was_held),
        _ => None,
    }
}

/// Returns the fencing token of the next holder, by the reply to a release. `None`: the release gave the
/// lock to no waiter, or did so when it was sent before.
pub(crate) fn given_token(reply: &Value) -> Option<u64> {
    let Value::Array(values) = reply else { return None };
    let [_, Value::BulkString(digits)] = values.as_slice() else { return None };
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The waiter that holds a lock after its release.
#[derive(Clone)]
pub(crate) struct NextHolder {
    pub(crate) owner_token: String,
    pub(crate) lease: Duration,
    pub(crate) label: Option<Arc<str>>,
}

/// Returns the call that releases what `owner_token` has acquired, requested or queued for. The
/// server remembers the release for the given time. The call also deletes the keys `answered`, of
/// releases that need not be remembered any more.
pub(crate) fn release(
    names: &LockKeys,
    owner_token: &str,
    remember: Duration,
    answered: Vec<String>,
    next: Option<&NextHolder>,
) -> ScriptCall {
    let of_next = next.map(|next| [names.fencing.clone(), names.done(&next.owner_token)]);
    let keys = names.state().into_iter().cloned().chain([names.done(owner_token)]);
    let keys = keys.chain(of_next.into_iter().flatten()).chain(answered);
    let is_semaphore = u8::from(names.is_semaphore).to_string();
    let own = [
        owner_token.to_owned(),
        remember.as_millis().max(1).to_string(),
        names.wake.to_string(),
        is_semaphore,
    ];
    let of_next = next.map(|NextHolder { owner_token, lease, label }| {
        let label = label.as_deref().unwrap_or_default().to_owned();
        [owner_token.clone(), lease.as_millis().to_string(), label]
    });
    ScriptCall::new(&RELEASE, keys, own.into_iter().chain(of_next.into_iter().flatten()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(10);

    #[test]
    fn a_lease_is_certain_for_less_than_its_length_and_the_less_the_slower_the_server() {
        let now = Instant::now();
        let certain = |took| valid_until(LEASE, Timing { sent: now, took });
        assert_eq!(certain(Duration::ZERO), now + LEASE - LEASE / 20);
        assert_eq!(certain(LEASE / 10), now + LEASE - LEASE / 5);
        assert_eq!(certain(LEASE), now + LEASE / 2);
    }
}
