//! The process that a session manager belongs to.

use crate::process::descriptors;
use crate::text::opaque_debug;

/// The process that made a value.
#[derive(Clone)]
pub(crate) struct Process {
    /// Compares two numbers in memory. The system call for the process id takes as long as a
    /// twentieth of a round trip on loopback.
    forks: Option<forkguard::Guard>,
    id: u32,
}

impl Process {
    /// The current process. Inherited sockets are closed before it opens any of its own.
    pub(crate) fn here() -> Self {
        descriptors::close_inherited();
        Self { forks: forkguard::Guard::try_new().ok(), id: std::process::id() }
    }

    /// A process that is not the current one.
    #[cfg(test)]
    pub(crate) fn another() -> Self {
        Self { forks: None, id: 0 }
    }

    /// Whether the current process is another one: a child that was forked later.
    pub(crate) fn is_other_process(&self) -> bool {
        match &self.forks {
            Some(forks) => forks.clone().detected_fork(),
            None => std::process::id() != self.id,
        }
    }

    /// The same; in a forked child it also closes the inherited sockets.
    pub(crate) fn is_forked_child(&self) -> bool {
        let other = self.is_other_process();
        if other {
            descriptors::close_inherited();
        }
        other
    }
}

// Shows nothing: a process id describes no session manager.
opaque_debug!(Process);
