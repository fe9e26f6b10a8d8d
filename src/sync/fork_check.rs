//! Whether a value belongs to the parent of a forked process.

use crate::text::opaque_debug;

/// The process that made a value.
#[derive(Clone)]
pub(crate) struct ForkCheck {
    /// Compares two numbers in memory. The system call for the process id takes as long as a
    /// twentieth of a round trip on loopback.
    forks: Option<forkguard::Guard>,
    id: u32,
}

impl ForkCheck {
    /// The current process.
    pub(crate) fn here() -> Self {
        Self { forks: forkguard::Guard::try_new().ok(), id: std::process::id() }
    }

    /// A process that is not the current one.
    #[cfg(all(test, not(rediscope_shuttle)))]
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
}

impl Default for ForkCheck {
    fn default() -> Self {
        Self::here()
    }
}

// Shows nothing: a process id describes no value.
opaque_debug!(ForkCheck);
