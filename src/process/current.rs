//! The process that a session manager belongs to.

use crate::process::descriptors;
use crate::sync::fork_check::ForkCheck;
use crate::text::opaque_debug;

/// The process that made a value.
#[derive(Clone)]
pub(crate) struct Process(ForkCheck);

impl Process {
    /// The current process. Inherited sockets are closed before it opens any of its own.
    pub(crate) fn here() -> Self {
        descriptors::close_inherited();
        Self(ForkCheck::here())
    }

    /// A process that is not the current one.
    #[cfg(all(test, not(rediscope_shuttle)))]
    pub(crate) fn another() -> Self {
        Self(ForkCheck::another())
    }

    /// Whether the current process is another one: a child that was forked later.
    pub(crate) fn is_other_process(&self) -> bool {
        self.0.is_other_process()
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
