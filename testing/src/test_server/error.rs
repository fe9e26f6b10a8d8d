//! Why a server did not start.

use std::ffi::OsString;
use std::process::ExitStatus;
use std::{error, fmt, io};

/// Why a [`TestServer`](super::TestServer) did not start. No process is left.
#[derive(Debug)]
#[non_exhaustive]
pub enum StartError {
    /// There is no such program, or it may not be run. The text names the packages that have one.
    #[non_exhaustive]
    NotInstalled {
        /// The program, from `REDIS_SERVER` or the caller, else `redis-server`.
        program: OsString,
        /// The refusal of the operating system.
        source: io::Error,
    },
    /// The server ended by itself, such as for an argument that it does not know.
    #[non_exhaustive]
    Ended {
        /// Its exit status.
        status: ExitStatus,
        /// What it had logged.
        log: String,
    },
    /// The server was killed because it did not reply within 60 s.
    #[non_exhaustive]
    Silent {
        /// What it had logged.
        log: String,
    },
    /// Other programs took each of the ports that were tried, or the port of a restart.
    PortTaken,
    /// No port, temporary folder or log file could be had.
    Io(io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotInstalled { program, .. } => write!(
                f,
                "cannot run {}: install redis-server (`apt-get install redis-server`, `dnf install redis`, `apk add \
                 redis`, `brew install redis`), or set REDIS_SERVER to the path of one",
                program.display()
            ),
            Self::Ended { status, log } => {
                write!(f, "the test server ended with {status}; it logged: {}", log.trim())
            }
            Self::Silent { log } => {
                write!(f, "the test server sent no reply within 60 s; it logged: {}", log.trim())
            }
            Self::PortTaken => f.write_str(
                "the test server's port was taken by another program, each time; try again",
            ),
            Self::Io(_) => f.write_str("cannot prepare a port or a folder for the test server"),
        }
    }
}

impl error::Error for StartError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::NotInstalled { source, .. } | Self::Io(source) => Some(source),
            _ => None,
        }
    }
}

impl From<io::Error> for StartError {
    fn from(source: io::Error) -> Self {
        Self::Io(source)
    }
}
