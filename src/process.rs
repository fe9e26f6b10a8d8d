//! The process that a session manager belongs to, and the sockets that its forked children close.
//!
//! A fork copies sockets and locks, and of all threads only the one that called it: two processes would read
//! each other's replies, and a lock that another thread held at that moment is never released in the child.
//!
//! Never: a wait. Never: a socket shut down, which would end it in the parent too.

pub(crate) mod sockets;

/// The process that something was made in.
#[derive(Clone)]
pub(crate) struct Process {
    /// Compares two numbers in memory. The system call that asks for the process id takes as long as a
    /// twentieth of a round trip on loopback.
    forks: Option<forkguard::Guard>,
    id: u32,
}

impl Process {
    /// This one. Sockets that it has inherited are closed, before it opens any of its own.
    pub(crate) fn here() -> Self {
        sockets::descriptors::close_inherited();
        Self { forks: forkguard::Guard::try_new().ok(), id: std::process::id() }
    }

    /// Whether this process is another one: a child that was forked later.
    pub(crate) fn is_other_process(&self) -> bool {
        match &self.forks {
            Some(forks) => forks.clone().detected_fork(),
            None => std::process::id() != self.id,
        }
    }

    /// The same, for a call that can return an error. In another process the inherited sockets are
    /// closed.
    pub(crate) fn is_forked_child(&self) -> bool {
        let other = self.is_other_process();
        if other {
            sockets::descriptors::close_inherited();
        }
        other
    }
}

/// Shows nothing: a number of a process says nothing of a session manager.
impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Process")
    }
}
