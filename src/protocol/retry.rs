//! The number of attempts of a block, and the wait between them.

use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// Upper bound of one wait, so that `Instant + wait` cannot overflow.
const MAX_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

/// The number of attempts of a block, and the wait between them. The wait is exponential backoff
/// with full jitter (a random time between nothing and the step).
///
/// | setting | what it bounds | default |
/// |---|---|---|
/// | [`attempts`](Self::attempts) | how often the block runs, the first time included; not the runs of a merged watch of which nothing was sent | 32 |
/// | [`deadline`](Self::deadline) | from the first attempt, or the wait for its turn, of a plain block from its first failure, to the beginning of the last | 10 s |
/// | [`first_backoff`](Self::first_backoff) | the first step | 1 ms |
/// | [`max_backoff`](Self::max_backoff) | the longest step; each is twice the one before | 100 ms |
///
/// The first limit that is reached ends the call: a watching block with
/// [`RetriesExhausted`](crate::Error::RetriesExhausted), a plain block with its last error.
///
/// ```
/// use std::time::Duration;
/// use rediscope::RetryPolicy;
///
/// let patient = RetryPolicy::default().attempts(200).deadline(Duration::from_secs(60));
/// let once = RetryPolicy::never();
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    attempts: u32,
    deadline: Duration,
    first_backoff: Duration,
    max_backoff: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 32,
            deadline: Duration::from_secs(10),
            first_backoff: Duration::from_millis(1),
            max_backoff: Duration::from_millis(100),
        }
    }
}

impl RetryPolicy {
    /// A policy with a single attempt.
    pub fn never() -> Self {
        Self::default().attempts(1)
    }

    /// Maximum number of attempts, the first included. At least 1.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// Latest start of an attempt, after the first one or the wait for its turn began. With `Duration::MAX` only `attempts`
    /// is a limit.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Longest wait before the second attempt. Not longer than `max_backoff`.
    pub fn first_backoff(mut self, step: Duration) -> Self {
        self.first_backoff = step;
        self
    }

    /// Longest wait before any attempt. At most one day.
    pub fn max_backoff(mut self, step: Duration) -> Self {
        self.max_backoff = step;
        self
    }

    pub(crate) fn begin(&self, now: Instant) -> Attempts {
        Attempts {
            policy: *self,
            number: 1,
            uncounted: 0,
            begun: now,
            // No deadline if `Instant + timeout` would overflow.
            deadline: now.checked_add(self.deadline),
            backoff: Backoff::new(self.first_backoff, self.max_backoff),
        }
    }
}

/// Exponential backoff: each step is twice the one before, up to a maximum.
#[derive(Debug)]
pub(crate) struct Backoff {
    steps: ExponentialBackoff,
    longest: Duration,
}

impl Backoff {
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        let longest = longest.min(MAX_WAIT);
        let steps = ExponentialBuilder::default()
            .with_min_delay(first.min(longest))
            .with_max_delay(longest)
            .with_factor(2.0)
            .without_max_times()
            .build();
        Self { steps, longest }
    }

    fn step(&mut self) -> Duration {
        self.steps.next().unwrap_or(self.longest).min(self.longest)
    }

    /// Returns the next wait: half a step, and a random part of the other half.
    pub(crate) fn wait(&mut self) -> Duration {
        self.step().mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

/// The attempts of one call.
#[derive(Debug)]
pub(crate) struct Attempts {
    policy: RetryPolicy,
    number: u32,
    /// Number of those that the policy does not count.
    uncounted: u32,
    begun: Instant,
    deadline: Option<Instant>,
    backoff: Backoff,
}

impl Attempts {
    /// The same, and no attempt begins after `until` either.
    pub(crate) fn until(self, until: Option<Instant>) -> Self {
        let deadline = self.deadline.into_iter().chain(until).min();
        Self { deadline, ..self }
    }

    /// Number of the current attempt, from 1.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    /// The same without those that the policy does not count.
    pub(crate) fn counted(&self) -> u32 {
        self.number - self.uncounted
    }

    /// Latest start of an attempt. If the deadline would overflow: a day after the
    /// first attempt.
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline.unwrap_or(self.begun + MAX_WAIT)
    }

    /// Whether the policy allows no further attempt, whatever the time.
    pub(crate) fn is_last(&self) -> bool {
        self.counted() >= self.policy.attempts
    }

    /// Begins another attempt, without a wait before it. `counts`: the policy counts the one before it.
    pub(crate) fn next_at_once(&mut self, counts: bool) {
        self.number += 1;
        self.uncounted += u32::from(!counts);
    }

    /// Counts another attempt and returns the wait before it. `None`: the policy allows no further
    /// attempt.
    pub(crate) fn next(&mut self, now: Instant) -> Option<Duration> {
        if self.is_last() {
            return None;
        }
        let wait = self.backoff.step().mul_f64(fastrand::f64());
        if self.deadline.is_some_and(|deadline| now + wait > deadline) {
            return None;
        }
        self.number += 1;
        Some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_and_steps_are_bounded() {
        let now = Instant::now();
        let policy = RetryPolicy::default().attempts(5).max_backoff(Duration::from_millis(3));
        let mut attempts = policy.begin(now);
        let waits: Vec<_> = std::iter::from_fn(|| attempts.next(now)).collect();
        assert_eq!(waits.len(), 4);
        assert_eq!(attempts.number(), 5);
        assert!(waits.iter().all(|wait| *wait <= Duration::from_millis(3)));
    }

    #[test]
    fn every_step_is_bounded_by_a_day() {
        let now = Instant::now();
        let steps = [Duration::ZERO, Duration::from_nanos(1), Duration::MAX];
        for (first, max) in steps.into_iter().flat_map(|one| steps.map(|other| (one, other))) {
            let policy = RetryPolicy::default().attempts(200).first_backoff(first).max_backoff(max);
            for deadline in steps {
                let mut attempts = policy.deadline(deadline).begin(now);
                assert!(attempts.deadline() >= now);
                while let Some(wait) = attempts.next(now) {
                    assert!(wait <= MAX_WAIT.min(max), "{wait:?}");
                }
                assert!(attempts.number() <= 200);
            }
        }
    }

    #[test]
    fn no_attempt_begins_after_the_deadline() {
        let now = Instant::now();
        let mut attempts = RetryPolicy::default().deadline(Duration::from_secs(1)).begin(now);
        assert!(attempts.next(now + Duration::from_secs(2)).is_none());
        assert!(RetryPolicy::never().begin(now).next(now).is_none());
    }
}
