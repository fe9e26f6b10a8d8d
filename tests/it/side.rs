//! The side of the library that the shared suites run on: threads.
//!
//! A suite takes its handles from here and builds them by [`BuildSide::build_side`]; the vocabulary (errors, outcomes,
//! conditions, options, queued commands) is the same on every side and comes from `rediscope`. Another side is another
//! `side` module, in a test binary that includes the same suites by path: its handles have the same methods and return
//! when the call is over. So a suite has one text.

use std::fs;

use rediscope::{Builder, ConfigError, Mode, Plain};

/// The handles of one side of the library.
pub(crate) trait Side {
    type SessionManager;
    type Transactional;
    type Transaction<M: Mode>;
    type Watching;
    type Pooled;
    type Lock;
    type LockGuard;

    fn build(builder: Builder) -> Result<Self::SessionManager, ConfigError>;
}

/// Every call blocks the thread that makes it.
pub(crate) struct Threads;

impl Side for Threads {
    type SessionManager = rediscope::SessionManager;
    type Transactional = rediscope::Transactional;
    type Transaction<M: Mode> = rediscope::Transaction<M>;
    type Watching = rediscope::Watching;
    type Pooled = rediscope::Pooled;
    type Lock = rediscope::Lock;
    type LockGuard = rediscope::LockGuard;

    fn build(builder: Builder) -> Result<Self::SessionManager, ConfigError> {
        builder.build()
    }
}

pub(crate) type SessionManager = <Threads as Side>::SessionManager;
pub(crate) type Transactional = <Threads as Side>::Transactional;
pub(crate) type Transaction<M = Plain> = <Threads as Side>::Transaction<M>;
pub(crate) type Watching = <Threads as Side>::Watching;
pub(crate) type Pooled = <Threads as Side>::Pooled;
pub(crate) type Lock = <Threads as Side>::Lock;
pub(crate) type LockGuard = <Threads as Side>::LockGuard;

/// `builder.build()` on this side.
pub(crate) trait BuildSide {
    fn build_side(self) -> Result<SessionManager, ConfigError>;
}

impl BuildSide for Builder {
    fn build_side(self) -> Result<SessionManager, ConfigError> {
        Threads::build(self)
    }
}

/// The suites that every side runs.
const SUITES: &[&str] = &[
    "conditions",
    "contract",
    "exactly_once",
    "faults",
    "leaks",
    "lock_fencing",
    "locks",
    "refusals",
    "scope_exit",
    "timeouts",
];

#[test]
fn the_shared_suites_take_their_handles_from_their_side() {
    let handles = [
        "SessionManager",
        "Transactional",
        "Transaction",
        "Watching",
        "Pooled",
        "Lock",
        "RwLock",
        "LockGuard",
    ];
    let mut found = Vec::new();
    let mut files = 0;
    for suite in SUITES {
        let file = [format!("tests/it/{suite}.rs").into()];
        let folder = fs::read_dir(format!("tests/it/{suite}")).into_iter().flatten();
        for path in folder.map(|entry| entry.unwrap().path()).chain(file) {
            let text = fs::read_to_string(&path)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            files += 1;
            let of_the_crate =
                text.split("rediscope::").skip(1).filter_map(|path| path.split(';').next());
            let named = of_the_crate.flat_map(|path| match path.strip_prefix('{') {
                Some(group) => group.split('}').next().unwrap().split(',').map(str::trim).collect(),
                None => vec![path.split(|c: char| !c.is_alphanumeric()).next().unwrap()],
            });
            let named: Vec<_> = named.filter(|name| handles.contains(name)).collect();
            if !named.is_empty() || text.contains(".build()") {
                found.push(format!("{}: {named:?} or build()", path.display()));
            }
        }
    }
    assert!(files > 60, "{files} files");
    assert!(found.is_empty(), "not from crate::side:\n{}", found.join("\n"));
}
