//! The side of the library that the shared suites run on: threads.
//!
//! A suite takes its handles from here and builds them by [`BuildSide::build_side`]; the vocabulary (errors, outcomes,
//! conditions, options, blocks, queued commands) is the same on every side and comes from `rediscope`. Another side is another
//! `side` module, in a test binary that includes the same suites by path: its handles have the same methods and return
//! when the call is over. So a suite has one text.
//!
//! Guarantee: none

use crate::source;
use rediscope::commands::QueueCommands;
use rediscope::error::{ConfigError, InDoubt, Resolution};
use rediscope::{Builder, Mode, Plain};

/// Whether a large transaction sends commands ahead of its commit.
pub(crate) const SENDS_CHUNKS: bool = true;

/// Whether a provider's panic at a re-authentication is a panic of the caller.
pub(crate) const PROVIDER_PANICS_PASS: bool = true;

/// Number of connections that a pool has in addition to `max_size`.
pub(crate) const LANES: usize = 0;

/// Items that another side may not have.
macro_rules! threads_only {
    ($($item:tt)*) => { $($item)* };
}
pub(crate) use threads_only;

/// The handles of one side of the library.
pub(crate) trait Side {
    type SessionManager;
    type Transactional;
    type Transaction<M: Mode>;
    type Watching;
    type Watch;
    type Conditional;
    type Pooled;
    type Lock;
    type RwLock;
    type LockGuard;
    type LockAll;

    fn build(builder: Builder) -> Result<Self::SessionManager, ConfigError>;
}

/// Every call blocks the thread that makes it.
pub(crate) struct Threads;

impl Side for Threads {
    type SessionManager = rediscope::SessionManager;
    type Transactional = rediscope::Transactional;
    type Transaction<M: Mode> = rediscope::Transaction<M>;
    type Watching = rediscope::Watching;
    type Watch = rediscope::Watch;
    type Conditional = rediscope::Conditional;
    type Pooled = rediscope::Pooled;
    type Lock = rediscope::lock::Lock;
    type RwLock = rediscope::lock::RwLock;
    type LockGuard = rediscope::lock::LockGuard;
    type LockAll = rediscope::lock::LockAll;

    fn build(builder: Builder) -> Result<Self::SessionManager, ConfigError> {
        builder.build()
    }
}

pub(crate) type SessionManager = <Threads as Side>::SessionManager;
pub(crate) type Transactional = <Threads as Side>::Transactional;
pub(crate) type Transaction<M = Plain> = <Threads as Side>::Transaction<M>;
pub(crate) type Watching = <Threads as Side>::Watching;
pub(crate) type Conditional = <Threads as Side>::Conditional;
pub(crate) type Pooled = <Threads as Side>::Pooled;
pub(crate) type Lock = <Threads as Side>::Lock;
pub(crate) type RwLock = <Threads as Side>::RwLock;
pub(crate) type LockGuard = <Threads as Side>::LockGuard;
pub(crate) type LockAll = <Threads as Side>::LockAll;

/// `builder.build()` on this side.
pub(crate) trait BuildSide {
    fn build_side(self) -> Result<SessionManager, ConfigError>;

    /// Each block and each command has a connection of the pool, which the test is about: so it is here.
    fn without_lanes(self) -> Self;
}

impl BuildSide for Builder {
    fn build_side(self) -> Result<SessionManager, ConfigError> {
        Threads::build(self)
    }

    fn without_lanes(self) -> Self {
        self
    }
}

/// The guard, where a target of commands of any kind is wanted.
pub(crate) fn queue<M: Mode>(tx: &mut Transaction<M>) -> &mut impl QueueCommands {
    tx
}

/// Waits until the connections of dropped scopes are idle or closed: here they are, when the drop ends.
pub(crate) fn settled(_: &SessionManager) {}

/// Opens the lanes of the transactional pool: here there are none.
pub(crate) fn open_lanes(_: &SessionManager, _: &str) {}

/// The same for the pooled handle.
pub(crate) fn open_pooled_lanes(_: &SessionManager, _: &str) {}

/// Sends what `tx` has queued, for the sides that keep it until the commit: here `flush_bytes` does.
pub(crate) fn send_ahead<M: Mode>(_: &mut Transaction<M>) {}

/// `doubt.resolve()` on this side.
pub(crate) trait ResolveDoubt {
    fn resolved(&self) -> Resolution;
}

impl ResolveDoubt for InDoubt {
    fn resolved(&self) -> Resolution {
        self.resolve()
    }
}

/// The suites that every side runs.
const SUITES: &[&str] = &[
    "acl",
    "cluster",
    "conditions",
    "contract",
    "credentials",
    "early_watches",
    "exactly_once",
    "failover",
    "faults",
    "hot_keys",
    "leaks",
    "lock_fencing",
    "locks",
    "measured",
    "merged_watches",
    "pooled",
    "protocol",
    "ready",
    "refusals",
    "scope_exit",
    "sentinel",
    "timeouts",
    "tls",
];

/// What the suites need besides each other, for every side to have it.
const SHARED: &[&str] = &["fixture", "side"];

const HANDLES: &[&str] = &[
    "SessionManager",
    "Transactional",
    "Transaction",
    "Watching",
    "Watch",
    "Conditional",
    "Pooled",
    "Lock",
    "RwLock",
    "LockGuard",
    "LockAll",
    "LockAllGuard",
];

#[test]
fn the_shared_suites_reach_the_library_through_their_side() {
    let allowed = |name: &str| SUITES.iter().chain(SHARED).any(|allowed| *allowed == name);
    let mut files = source::files("tests/it");
    files.retain(|module, _| allowed(&module[0]) && module[0] != "side");
    assert!(files.len() > 60, "{} files", files.len());
    let mut found = Vec::new();
    for (module, tokens) in &files {
        for used in source::uses(tokens, &["crate", "super", "self", "rediscope"]) {
            let refused = match &*used.path.iter().map(String::as_str).collect::<Vec<_>>() {
                ["rediscope"] => used.name != "rediscope",
                ["rediscope", "prelude" | "commands", "*"] => false,
                ["rediscope", .., "*" | "lock"] => true,
                ["rediscope", names @ ..] => names.iter().any(|name| HANDLES.contains(name)),
                _ => !used.absolute(module).first().is_some_and(|name| allowed(name)),
            };
            if refused {
                found.push(format!("{}: {}", module.join("/"), used.path.join("::")));
            }
        }
        let calls_build = tokens.windows(4).any(|call| call == [".", "build", "(", ")"]);
        let renames = tokens.windows(2).any(|words| words == ["rediscope", "as"]);
        if calls_build || renames {
            found.push(format!("{}: build() or a second name of the crate", module.join("/")));
        }
    }
    assert!(found.is_empty(), "past crate::side:\n{}", found.join("\n"));
}
