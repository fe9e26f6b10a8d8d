//! The token by which a held lock is handed to another process.

use std::fmt;
use std::str::FromStr;

use crate::protocol::checksum::{fnv1a, text_checksum};
use crate::protocol::lock::acquire::{LockMode, permits_of};
use crate::protocol::lock::keys::LockKeys;
use crate::text::opaque_debug;

/// A held lock without a guard: it is handed to another process, which adopts it.
///
/// [`LockGuard::into_token`](crate::lock::LockGuard::into_token) makes it, and
/// [`Lock::adopt`](crate::lock::Lock::adopt) on a handle of the same lock turns it into a guard again: in
/// another process, on threads or on tasks. Between the two the lock stays held, and its lease is not
/// extended: a token that is not adopted ends with its lease. Of several adoptions of one token, one
/// succeeds.
///
/// It is written by `Display` and read by `FromStr`, as one word without spaces; with the feature `serde`,
/// also by serde, as that word. White space around the word is ignored. A word that was changed is an
/// error.
///
/// **The word is a secret**: a client that has it can take the lock over. `Debug` does not show it. It
/// contains no name of a lock.
///
/// Dropping it does nothing: the lock ends with its lease.
///
/// ```no_run
/// use std::time::Duration;
/// use rediscope::SessionManager;
/// use rediscope::lock::HoldToken;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let sessions = SessionManager::connect("redis://127.0.0.1/")?;
/// // The process that accepts a job:
/// let guard = sessions.lock("report").lease(Duration::from_secs(60)).acquire(Duration::from_secs(2))?;
/// let word = guard.into_token()?.to_string();
/// // The process that carries it out, within the 60 seconds:
/// let token: HoldToken = word.parse()?;
/// let guard = sessions.lock("report").adopt(&token)?;
/// guard.release()?;
/// # Ok(()) }
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(into = "String", try_from = "String"))]
#[must_use = "a hold that is not adopted ends with its lease"]
pub struct HoldToken {
    owner_token: String,
    fencing: u64,
    /// Checksum of the key of the lock's holders.
    of: u64,
    /// A request for the lock may still be in flight.
    maybe_in_flight: bool,
}

impl HoldToken {
    pub(crate) fn new(
        names: &LockKeys,
        owner_token: &str,
        fencing: u64,
        maybe_in_flight: bool,
    ) -> Self {
        let of = fnv1a(names.holders.as_bytes());
        Self { owner_token: owner_token.to_owned(), fencing, of, maybe_in_flight }
    }

    /// The fencing token of the hold, which is that of the guard that adopts it, too.
    pub fn fencing_token(&self) -> u64 {
        self.fencing
    }

    pub(crate) fn owner_token(&self) -> &str {
        &self.owner_token
    }

    pub(crate) fn maybe_in_flight(&self) -> bool {
        self.maybe_in_flight
    }

    /// Returns the number of permits of the hold.
    pub(crate) fn permits(&self) -> u32 {
        permits_of(&self.owner_token)
    }

    /// Returns whether this is a hold of the lock with these keys.
    pub(crate) fn is_of(&self, names: &LockKeys, mode: LockMode) -> bool {
        self.of == fnv1a(names.holders.as_bytes()) && self.owner_token.starts_with(mode.letter())
    }
}

/// `owner.fencing.lock.flight.checksum`. The last part is of what is before its dot.
impl fmt::Display for HoldToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { owner_token, fencing, of, maybe_in_flight } = self;
        let fields = format!("{owner_token}.{fencing}.{of:016x}.{}", u8::from(*maybe_in_flight));
        write!(f, "{fields}.{}", text_checksum(&fields))
    }
}

impl FromStr for HoldToken {
    type Err = InvalidHoldToken;

    fn from_str(text: &str) -> Result<Self, InvalidHoldToken> {
        let text = text.trim();
        let token = parsed(text).filter(|token| token.to_string() == text);
        token.ok_or(InvalidHoldToken(()))
    }
}

fn parsed(text: &str) -> Option<HoldToken> {
    let parts: Vec<_> = text.split('.').collect();
    let [owner_token, fencing, of, flight, _checksum] = parts.as_slice() else { return None };
    if !is_owner_token(owner_token) {
        return None;
    }
    Some(HoldToken {
        owner_token: (*owner_token).to_owned(),
        fencing: fencing.parse().ok()?,
        of: u64::from_str_radix(of, 16).ok()?,
        maybe_in_flight: *flight == "1",
    })
}

/// Whether a holder can have this token.
fn is_owner_token(text: &str) -> bool {
    let (random, permits) = match text.split_once(':') {
        Some((random, permits)) => (random, permits.parse().ok().filter(|number| *number > 1)),
        None => (text, Some(1_u32)),
    };
    let digits = random.strip_prefix(['x', 'r', 'w']).unwrap_or_default();
    permits.is_some() && digits.len() == 32 && digits.bytes().all(|it| it.is_ascii_hexdigit())
}

impl From<HoldToken> for String {
    fn from(token: HoldToken) -> Self {
        token.to_string()
    }
}

impl TryFrom<String> for HoldToken {
    type Error = InvalidHoldToken;

    fn try_from(text: String) -> Result<Self, InvalidHoldToken> {
        text.parse()
    }
}

opaque_debug!(HoldToken);

/// A text that is no [`HoldToken`], or was changed. The text is not repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("not the token of a held lock, or a changed one; write it as Display does")]
pub struct InvalidHoldToken(());

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::lock::acquire::owner_token;

    fn token(mode: LockMode, permits: u32) -> HoldToken {
        let names = LockKeys::new("app", "sem", "n", false);
        HoldToken::new(&names, &owner_token(mode, permits, 7), 1_234, permits > 1)
    }

    #[test]
    fn a_token_is_read_as_it_was_written_and_no_other_text_is_one() {
        for (mode, permits) in
            [(LockMode::Semaphore, 1), (LockMode::Semaphore, u32::MAX), (LockMode::Read, 1)]
        {
            let token = token(mode, permits);
            let text = token.to_string();
            assert_eq!(format!(" {text}\n").parse(), Ok(token.clone()));
            assert_eq!((token.permits(), token.fencing_token()), (permits, 1_234));
            for at in 0..text.len() {
                let mut changed = text.clone().into_bytes();
                changed[at] = if changed[at] == b'1' { b'2' } else { b'1' };
                let changed = String::from_utf8(changed).unwrap();
                assert_eq!(changed.parse::<HoldToken>(), Err(InvalidHoldToken(())), "{changed}");
                assert!(text[..at].parse::<HoldToken>().is_err());
            }
            assert!(!format!("{token:?}").contains("0007"));
        }
    }

    /// CRC-16 alone takes one of 65,536 such texts.
    #[test]
    fn a_token_that_has_lost_a_digit_is_none() {
        let names = LockKeys::new("app", "sem", "n", false);
        let owner = owner_token(LockMode::Read, 1, 7);
        for fencing in 10_000..100_000 {
            let text = HoldToken::new(&names, &owner, fencing, false).to_string();
            for at in (owner.len() + 1..).take(5) {
                let mut changed = text.clone();
                changed.remove(at);
                assert_eq!(changed.parse::<HoldToken>(), Err(InvalidHoldToken(())), "{changed}");
            }
        }
    }

    #[test]
    fn a_token_is_of_its_lock_only() {
        let token = token(LockMode::Read, 1);
        let of = |family, name, mode| token.is_of(&LockKeys::new("app", family, name, false), mode);
        assert!(of("sem", "n", LockMode::Read));
        assert!(!of("sem", "n", LockMode::Write));
        assert!(!of("lock", "n", LockMode::Read) && !of("sem", "m", LockMode::Read));
    }
}
