//! Which sockets are this crate's, so that a forked child can close its copies of them.
//!
//! There is one bit for each descriptor, and no lock: a lock may have been held, at the time of the fork, by a
//! thread that the child does not have.
//!
//! Never: a descriptor closed twice. What the child has inherited is closed by its number, and then forgotten
//! instead of dropped.

use std::io::{self, Read, Write};
use std::mem;
use std::net::TcpStream;
use std::ops::Deref;
use std::sync::Arc;

use crate::process::Process;

/// A socket, in the process that opened it.
#[derive(Debug)]
pub(crate) struct OwnSocket {
    stream: Arc<TcpStream>,
    process: Process,
}

impl OwnSocket {
    pub(crate) fn new(stream: TcpStream) -> Self {
        let process = Process::here();
        descriptors::opened(&stream);
        Self { stream: Arc::new(stream), process }
    }
}

impl Drop for OwnSocket {
    fn drop(&mut self) {
        if self.process.is_forked_child() {
            // Its descriptor was closed just now, or long ago, and may be another file's by now.
            mem::forget(Arc::clone(&self.stream));
        } else {
            descriptors::closes(&self.stream);
        }
    }
}

impl Deref for OwnSocket {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        &self.stream
    }
}

impl Read for &OwnSocket {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        (&*self.stream).read(bytes)
    }
}

impl Write for &OwnSocket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self.stream).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        (&*self.stream).flush()
    }
}

#[cfg(unix)]
pub(crate) mod descriptors {
    use std::net::TcpStream;
    use std::os::fd::{AsRawFd, RawFd};
    use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
    use std::time::{Duration, Instant};

    /// Descriptors above this number are not noted: 64 in a word, about a million of them, 128 KiB.
    const WORDS: usize = 16 * 1024;
    const BITS: RawFd = u64::BITS as RawFd;

    /// The sockets of the process with the id `OWNER`.
    static OPEN: [AtomicU64; WORDS] = [const { AtomicU64::new(0) }; WORDS];
    static OWNER: AtomicU32 = AtomicU32::new(0);
    /// The process that has closed all that it had inherited.
    static SWEPT: AtomicU32 = AtomicU32::new(0);

    /// How long a thread waits for another one of the same child that closes what was inherited.
    const PATIENCE: Duration = Duration::from_millis(5);

    fn place(stream: &TcpStream) -> Option<(&'static AtomicU64, u64)> {
        let descriptor = stream.as_raw_fd();
        let word = OPEN.get(usize::try_from(descriptor / BITS).ok()?)?;
        Some((word, 1 << (descriptor % BITS)))
    }

    pub(crate) fn opened(stream: &TcpStream) {
        if let Some((word, bit)) = place(stream) {
            word.fetch_or(bit, Ordering::AcqRel);
        }
    }

    /// Noted before the system does it: once it is closed the number may be another thread's.
    pub(crate) fn closes(stream: &TcpStream) {
        if let Some((word, bit)) = place(stream) {
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
            // Another thread of this process does it.
            let until = Instant::now() + PATIENCE;
            while SWEPT.load(Ordering::Acquire) != here && Instant::now() < until {
                std::thread::yield_now();
            }
            return;
        }
        for (word, first) in OPEN.iter().zip((0..).step_by(BITS as usize)) {
            let mut open = word.swap(0, Ordering::AcqRel);
            while open != 0 {
                // It fails for what the child has closed by its number: nothing is lost by that.
                let _: nix::Result<()> = nix::unistd::close(first + open.trailing_zeros() as RawFd);
                open &= open - 1;
            }
        }
        SWEPT.store(here, Ordering::Release);
    }
}

#[cfg(not(unix))]
pub(crate) mod descriptors {
    //! There is no fork.

    pub(crate) fn opened(_: &std::net::TcpStream) {}

    pub(crate) fn closes(_: &std::net::TcpStream) {}

    pub(in crate::process) fn close_inherited() {}
}
