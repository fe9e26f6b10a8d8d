//! The descriptors of this crate's sockets, so that a forked child can close its copies of them.
//!
//! There is one word for each descriptor and no lock: at the time of the fork, a lock may be held by
//! a thread that the child does not have.
//!
//! The child may have closed an inherited descriptor itself, and its number may be a file of its own
//! then. So the word is the socket's identity, and a descriptor is closed by number only if it is still
//! that socket. Afterwards the child forgets the sockets instead of dropping them, so none is closed
//! twice. No socket is shut down, because that would end it in the parent.

#[cfg(unix)]
pub(crate) use std::os::fd::AsRawFd as Descriptor;

#[cfg(unix)]
pub(in crate::process) use unix::{close_inherited, on_close, on_open};

#[cfg(unix)]
mod unix {
    use std::fs;
    use std::os::fd::{AsRawFd, RawFd};
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    /// Length of the table. Descriptors above are not recorded. It takes 8 MiB of addresses, and memory
    /// only for the pages that are written.
    const LENGTH: usize = 1024 * 1024;

    /// The sockets of the process with the id `OWNER`, by descriptor: see `socket_at`.
    static OPEN: [AtomicU64; LENGTH] = [const { AtomicU64::new(NONE) }; LENGTH];
    /// All descriptors that are recorded are below.
    static END: AtomicUsize = AtomicUsize::new(0);
    static OWNER: AtomicU32 = AtomicU32::new(0);

    const NONE: u64 = 0;
    /// A socket whose identity cannot be read, for example without `/proc`: the child closes whatever
    /// has its number.
    const UNKNOWN: u64 = u64::MAX;

    /// The folder with an entry for each open descriptor of the process.
    const FOLDER: &str = if cfg!(target_os = "linux") { "/proc/self/fd" } else { "/dev/fd" };

    /// Id of the process that has closed all descriptors it inherited.
    static SWEPT: AtomicU32 = AtomicU32::new(0);

    /// Maximum time that a thread waits for another thread of the same child to close the inherited
    /// descriptors.
    const SWEEP_TIMEOUT: Duration = Duration::from_millis(5);

    /// The identity of the socket with this descriptor. No other socket of this system has it; some
    /// systems have one for all TCP sockets.
    fn socket_at(descriptor: RawFd) -> Option<u64> {
        let found = fs::metadata(format!("{FOLDER}/{descriptor}")).ok()?;
        found.file_type().is_socket().then(|| found.ino().saturating_add(1))
    }

    pub(in crate::process) fn on_open(stream: &impl AsRawFd) {
        let descriptor = stream.as_raw_fd();
        let Ok(index) = usize::try_from(descriptor) else { return };
        if let Some(word) = OPEN.get(index) {
            // First, because a fork may come in between.
            END.fetch_max(index + 1, Ordering::AcqRel);
            word.store(socket_at(descriptor).unwrap_or(UNKNOWN), Ordering::Release);
        }
    }

    /// Called before the close: afterwards the number may be another thread's.
    pub(in crate::process) fn on_close(stream: &impl AsRawFd) {
        if let Some(word) = usize::try_from(stream.as_raw_fd()).ok().and_then(|at| OPEN.get(at)) {
            word.store(NONE, Ordering::Release);
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
        for (word, descriptor) in OPEN.iter().zip(0..).take(END.swap(0, Ordering::AcqRel)) {
            if word.load(Ordering::Acquire) == NONE {
                continue;
            }
            let socket = word.swap(NONE, Ordering::AcqRel);
            if socket == UNKNOWN || socket_at(descriptor) == Some(socket) {
                let _: nix::Result<()> = nix::unistd::close(descriptor);
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
