//! The descriptors of this crate's sockets, so that a forked child can close its copies of them.
//!
//! There is one bit for each descriptor and no lock: at the time of the fork, a lock may be held by
//! a thread that the child does not have.
//!
//! No descriptor is closed twice: the child closes inherited descriptors by number, and then
//! forgets their sockets instead of dropping them. No socket is shut down, because that would end
//! it in the parent.

#[cfg(unix)]
pub(crate) use std::os::fd::AsRawFd as Descriptor;

#[cfg(unix)]
pub(in crate::process) use unix::{close_inherited, on_close, on_open};

#[cfg(unix)]
mod unix {
    use std::os::fd::{AsRawFd, RawFd};
    use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
    use std::time::{Duration, Instant};

    /// Number of words of the table, 64 descriptors each: about a million of them, in 128 KiB.
    /// Descriptors above are not recorded.
    const WORDS: usize = 16 * 1024;
    const BITS: RawFd = u64::BITS as RawFd;

    /// The sockets of the process with the id `OWNER`.
    static OPEN: [AtomicU64; WORDS] = [const { AtomicU64::new(0) }; WORDS];
    static OWNER: AtomicU32 = AtomicU32::new(0);
    /// Id of the process that has closed all descriptors it inherited.
    static SWEPT: AtomicU32 = AtomicU32::new(0);

    /// Maximum time that a thread waits for another thread of the same child to close the inherited
    /// descriptors.
    const SWEEP_TIMEOUT: Duration = Duration::from_millis(5);

    fn bit_of(stream: &impl AsRawFd) -> Option<(&'static AtomicU64, u64)> {
        let descriptor = stream.as_raw_fd();
        let word = OPEN.get(usize::try_from(descriptor / BITS).ok()?)?;
        Some((word, 1 << (descriptor % BITS)))
    }

    pub(in crate::process) fn on_open(stream: &impl AsRawFd) {
        if let Some((word, bit)) = bit_of(stream) {
            word.fetch_or(bit, Ordering::AcqRel);
        }
    }

    /// Called before the close: afterwards the number may be another thread's.
    pub(in crate::process) fn on_close(stream: &impl AsRawFd) {
        if let Some((word, bit)) = bit_of(stream) {
            word.fetch_and(!bit, Ordering::AcqRel);
        }
    }

    /// In a process that was forked from the owner of the sockets: closes them all, once.
    pub(in crate::process) fn close_inherited() {
        let here = std::process::id();
        if SWEPT.load(Ordering::Acquire) == here {
            return;
        }
        if OWNER.swap(here, Ordering::AcqRel) == here {
            // Another thread of this process closes them.
            let until = Instant::now() + SWEEP_TIMEOUT;
            while SWEPT.load(Ordering::Acquire) != here && Instant::now() < until {
                std::thread::yield_now();
            }
            return;
        }
        for (word, first) in OPEN.iter().zip((0..).step_by(BITS as usize)) {
            let mut open = word.swap(0, Ordering::AcqRel);
            while open != 0 {
                // It fails for a descriptor that the child has closed by its number, harmlessly.
                let _: nix::Result<()> = nix::unistd::close(first + open.trailing_zeros() as RawFd);
                open &= open - 1;
            }
        }
        SWEPT.store(here, Ordering::Release);
    }
}

/// What has a descriptor. There is no fork.
#[cfg(not(unix))]
pub(crate) trait Descriptor {}

#[cfg(not(unix))]
impl<S> Descriptor for S {}

/// There is no fork.
#[cfg(not(unix))]
pub(in crate::process) fn on_open(_: &impl Descriptor) {}

/// There is no fork.
#[cfg(not(unix))]
pub(in crate::process) fn on_close(_: &impl Descriptor) {}

/// There is no fork.
#[cfg(not(unix))]
pub(in crate::process) fn close_inherited() {}
