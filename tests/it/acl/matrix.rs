//! A right is withdrawn at one time, for one form. The error is true, and the connections work once the right
//! is granted again.
//!
//! Guarantee: rights

use crate::fixture::{LONG, OF_ONE, SOON};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use crate::side::{LANES, SENDS_CHUNKS, SessionManager, open_lanes, open_pooled_lanes};

use super::fixture::{RestrictedServer, nothing_is_held, summary};
use super::forms::Form::{self, *};
use super::forms::N;
use rediscope_testing::eventually;

/// Since when it is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// Before the first connection.
    Fresh,
    /// Since the connections are idle, and they are checked before they are used.
    Asked,
    /// The same, and they are trusted.
    Trusted,
}
use When::{Asked, Fresh, Trusted};

type Expected = (&'static [When], &'static [Form], &'static str);

/// What is not named works as if nothing were missing.
struct Row {
    without: &'static str,
    expected: &'static [Expected],
}

const EVER: &[When] = &[Fresh, Asked, Trusted];
const LATER: &[When] = &[Asked, Trusted];
const LOCKS: &[Form] = &[Lock, FairLock, RwLock, Semaphore, Fenced];
/// All that ends in EXEC.
const BLOCKS: &[Form] =
    &[Guard, Immediate, Run, Large, Grouped, Watch, Require, Once, OnceAs, Replicas, Fenced];

const SINGLE: Expected = (EVER, &[Single], "Command INCRBY NOPERM, applied No");
/// Both commands of it. How many there were the `redis` crate does not say.
const PIPELINE: Expected = (EVER, &[Pipeline], "Pipeline 2 from 0 NOPERM, applied No");
const REJECTED: &str = "Rejected 0 INCRBY NOPERM, applied No";
const NO_CONNECTION: &str = "Connect Refused NOPERM, applied No";
const NO_MULTI: &str = "Rejected MULTI NOPERM, applied No";
/// The text of Redis 7.0. In the middle of a script: what it had done is undone.
const HALF_WAY: &str = "Lock acquire ERR, applied Unknown";
const NOT_ACQUIRED: &str = "Lock acquire NOPERM, applied No";
const RELEASED_HALF_WAY: &str = "Lock release ERR, applied Unknown";

const ROWS: &[Row] = &[
    Row { without: "-incrby", expected: &[SINGLE, PIPELINE, (EVER, BLOCKS, REJECTED)] },
    Row {
        without: "resetkeys ~rediscope:*",
        expected: &[
            SINGLE,
            PIPELINE,
            (EVER, &[Watch, Require], "Command WATCH NOPERM, applied No"),
            (EVER, BLOCKS, REJECTED),
        ],
    },
    // To watch a key it is enough to be allowed to read it, or to write it.
    Row {
        without: "resetkeys ~rediscope:* %R~app:*",
        expected: &[SINGLE, PIPELINE, (EVER, BLOCKS, REJECTED)],
    },
    Row {
        without: "resetkeys ~rediscope:* %W~app:*",
        expected: &[
            SINGLE,
            PIPELINE,
            (EVER, &[Watch], "Command GET NOPERM, applied No"),
            (EVER, BLOCKS, REJECTED),
        ],
    },
    Row {
        without: "resetkeys ~app:*",
        expected: &[
            (EVER, &[Once], "Rejected SET of the register NOPERM, applied No"),
            (&[Fresh], &[OnceAs], "Rejected SET of the register NOPERM, applied No"),
            (LATER, &[OnceAs], "Rejected WATCH of the idempotency key NOPERM, applied No"),
            (EVER, LOCKS, NOT_ACQUIRED),
        ],
    },
    Row {
        without: "resetkeys ~app:* %R~rediscope:*",
        expected: &[
            (EVER, &[Once, OnceAs], "Rejected SET of the register NOPERM, applied No"),
            (EVER, LOCKS, NOT_ACQUIRED),
        ],
    },
    // To resolve a doubt it is not enough.
    Row { without: "resetkeys ~app:* %W~rediscope:*", expected: &[(EVER, LOCKS, NOT_ACQUIRED)] },
    Row {
        without: "-multi",
        expected: &[
            (&[Fresh], BLOCKS, NO_CONNECTION),
            // These ask before the commands leave, also on a trusted connection.
            (LATER, &[Immediate, Large, OnceAs, Fenced], NO_MULTI),
            (&[Asked], BLOCKS, NO_MULTI),
            (&[Trusted], BLOCKS, "NotIsolated 0 failed, applied Yes"),
        ],
    },
    Row { without: "-exec", expected: &[(EVER, BLOCKS, "Rejected EXEC NOPERM, applied No")] },
    Row {
        without: "-discard",
        expected: &[
            (&[Fresh], BLOCKS, NO_CONNECTION),
            // The reply to MULTI is awaited before the commit.
            (&[Asked], &[Immediate], "Rejected DISCARD NOPERM, applied No"),
        ],
    },
    Row {
        without: "-watch",
        expected: &[
            (EVER, &[Watch, Require], "Command WATCH NOPERM, applied No"),
            // Later, the register of the connection is watched already.
            (&[Fresh], &[Once, OnceAs], "Rejected WATCH of the register NOPERM, applied No"),
            (LATER, &[OnceAs], "Rejected WATCH of the idempotency key NOPERM, applied No"),
            (EVER, &[Fenced], "Rejected WATCH of the lock NOPERM, applied No"),
        ],
    },
    Row { without: "-evalsha", expected: &[(EVER, LOCKS, NOT_ACQUIRED)] },
    // It is needed where the server does not know the scripts yet.
    Row { without: "-eval", expected: &[(EVER, LOCKS, NOT_ACQUIRED)] },
    Row {
        without: "-set",
        expected: &[
            (EVER, &[Once, OnceAs], "Rejected SET of the register NOPERM, applied No"),
            (EVER, LOCKS, RELEASED_HALF_WAY),
        ],
    },
    Row { without: "-get", expected: &[(EVER, &[Watch], "Command GET NOPERM, applied No")] },
    Row {
        without: "-exists",
        expected: &[
            (EVER, &[Require], "Command EXISTS of condition #0 not_exists NOPERM, applied No"),
            (EVER, &[OnceAs], "Rejected EXISTS of the idempotency key NOPERM, applied No"),
            (EVER, LOCKS, HALF_WAY),
        ],
    },
    Row { without: "-wait", expected: &[(EVER, &[Replicas], "NotReplicated NOPERM, applied Yes")] },
    Row { without: "-time", expected: &[(EVER, LOCKS, HALF_WAY)] },
    Row { without: "-getset", expected: &[(EVER, LOCKS, HALF_WAY)] },
    Row { without: "-hset", expected: &[(EVER, LOCKS, HALF_WAY)] },
    Row { without: "-zadd", expected: &[(EVER, LOCKS, HALF_WAY)] },
    Row { without: "-pexpireat", expected: &[(EVER, LOCKS, HALF_WAY)] },
    Row {
        without: "-zrem",
        expected: &[(EVER, &[FairLock], HALF_WAY), (EVER, LOCKS, RELEASED_HALF_WAY)],
    },
    Row { without: "-hdel", expected: &[(EVER, LOCKS, RELEASED_HALF_WAY)] },
    Row {
        without: "-@all",
        expected: &[
            SINGLE,
            PIPELINE,
            (EVER, LOCKS, NOT_ACQUIRED),
            (&[Fresh], BLOCKS, NO_CONNECTION),
            (LATER, &[Watch, Require], "Command WATCH NOPERM, applied No"),
            (LATER, &[OnceAs], "Rejected WATCH of the idempotency key NOPERM, applied No"),
            (LATER, BLOCKS, NO_MULTI),
        ],
    },
    // Every user may do it, or no form needs it, or a form without the right goes on without it.
    Row { without: "-auth -hello", expected: &[] },
    Row { without: "-client -ping -select -script -command -role", expected: &[] },
    Row { without: "-unwatch -pexpire", expected: &[] },
    Row { without: "resetchannels", expected: &[] },
    Row { without: "-publish -subscribe -unsubscribe", expected: &[] },
];

impl Row {
    fn expected(&self, when: When, form: Form) -> &'static str {
        // Without chunks, a large block is sent as any other.
        let form = if form == Large && !SENDS_CHUNKS { Run } else { form };
        let named = |(whens, forms, _): &&Expected| whens.contains(&when) && forms.contains(&form);
        self.expected.iter().find(named).map_or("ok", |(_, _, expected)| expected)
    }
}

/// What is missing, since when, and in which form.
struct Cell<'s> {
    fixture: &'s RestrictedServer,
    row: &'static Row,
    when: When,
    form: Form,
    sessions: SessionManager,
}

impl Cell<'_> {
    fn play(&self) {
        let Self { fixture, row, when, form, sessions } = self;
        let cell = format!("{:?} {form:?} {}", when, row.without);
        if *when != Fresh {
            form.play(sessions).unwrap();
            // So none is being opened when the right is removed.
            open_lanes(sessions, N);
            open_pooled_lanes(sessions, N);
            // As the connection, each lane was used by the form.
            (0..LANES).for_each(|_| form.play(sessions).unwrap());
        }
        fixture.server.ask::<()>(&["SCRIPT", "FLUSH"]);
        let before = fixture.number(N);
        fixture.operator(row.without);
        let answer = form.play(sessions);
        let (text, applied) = match &answer {
            Ok(()) => ("ok".to_owned(), None),
            Err(error) => (summary(error), Some(error.applied())),
        };
        assert_eq!(text, row.expected(*when, *form), "{cell}");
        self.is_true(applied, fixture.number(N) - before, &cell);
        nothing_is_held(sessions);

        fixture.may_do_all();
        let before = fixture.number(N);
        form.play(sessions).unwrap_or_else(|error| panic!("{cell}, given back: {error:#}"));
        assert_eq!(fixture.number(N) - before, i64::from(form.adds()), "{cell}, given back");
        eventually(SOON, &format!("{cell}: no lock is left"), || {
            let all = fixture.keys("rediscope:*{*");
            all.iter().all(|key| key.contains(":done:"))
        });
        self.connections_go_on(&text, &cell);
    }

    /// What the error reports of the data is true.
    fn is_true(&self, applied: Option<rediscope::error::Applied>, added: i64, cell: &str) {
        use rediscope::error::Applied::{No, Partly, Unknown, Yes};
        let adds = i64::from(self.form.adds());
        match applied {
            None | Some(Yes) => assert_eq!(added, adds, "{cell}"),
            // Both commands of the pipeline were refused.
            Some(No | Partly) => assert_eq!(added, 0, "{cell}"),
            // That is the lock: the fenced write returned before it was released.
            Some(Unknown) => assert!(added <= adds && !self.form.is_block(), "{cell}"),
        }
    }

    /// None was replaced that did not have to be.
    fn connections_go_on(&self, reported: &str, cell: &str) {
        nothing_is_held(&self.sessions);
        let status = self.sessions.status();
        let spoilt = reported.starts_with("NotIsolated")
            || reported.starts_with("Rejected DISCARD")
            // Every command was refused with MULTI, and EXEC failed without it.
            || (self.when == Trusted && reported == NO_MULTI && self.row.without == "-@all"
                && !asks_first(self.form));
        for pool in [&status.pooled, &status.transactional] {
            let replaced = if pool.name == "transactional" { u64::from(spoilt) } else { 0 };
            assert_eq!(pool.counts.all_replaced(), replaced, "{cell}: {pool}");
            assert!(pool.counts.connects <= OF_ONE as u64 + replaced, "{cell}: {pool}");
        }
    }
}

/// Whether MULTI is answered before the commands leave.
fn asks_first(form: Form) -> bool {
    form == Immediate || (form == Large && SENDS_CHUNKS)
}

fn every_cell(when: When) {
    let rows = Mutex::new(ROWS.iter());
    let some_of_them = || {
        let fixture = RestrictedServer::start();
        loop {
            let Some(row) = rows.lock().unwrap().next() else { break };
            for form in Form::ALL {
                fixture.server.ask::<()>(&["FLUSHALL"]);
                fixture.may_do_all();
                let trust = if when == Asked { Duration::ZERO } else { LONG };
                let sessions = fixture.sessions(trust);
                Cell { fixture: &fixture, row, when, form, sessions }.play();
            }
        }
    };
    // Most of the time is waited for connections that are refused.
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(some_of_them);
        }
    });
}

#[test]
fn a_right_that_was_never_there_is_an_error_in_every_form_and_nothing_is_applied() {
    every_cell(Fresh);
}

#[test]
fn a_right_that_was_taken_away_is_an_error_in_every_form_and_nothing_is_applied() {
    every_cell(Asked);
}

#[test]
fn a_right_taken_away_from_trusted_connections_is_reported_with_the_true_outcome() {
    every_cell(Trusted);
}

#[test]
fn resp3_and_another_database_need_no_right_but_to_select() {
    let fixture = RestrictedServer::start();
    fixture.operator("-hello -auth");
    for rest in ["?protocol=resp3", "3", "3?protocol=resp3"] {
        let sessions = fixture.sessions_at(rest, LONG);
        for form in Form::ALL {
            form.play(&sessions).unwrap_or_else(|error| panic!("{rest} {form:?}: {error}"));
        }
    }
    fixture.operator("-select");
    let sessions = fixture.sessions_at("3", LONG);
    for form in Form::ALL {
        assert_eq!(summary(&form.play(&sessions).unwrap_err()), NO_CONNECTION, "{form:?}");
    }
    fixture.operator("+select");
    Single.play(&sessions).unwrap();
    Run.play(&sessions).unwrap();
    nothing_is_held(&sessions);
}
