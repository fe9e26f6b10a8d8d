//! Every cut point of a commit, under every kind of cut, for every form of a commit.
//!
//! A cell is one transaction that is cut once. `model` has what the call must return and what the server
//! must then hold; this file makes the cut and compares.
//!
//! Guarantee: pools, in-doubt

use crate::fixture::{SLACK, SOON};
use crate::side::BuildSide as _;
use std::cmp::Reverse;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crate::side::{LANES, SessionManager};
use redis::cmd;
use rediscope::prelude::*;
use rediscope::{Begin, RetryPolicy, TransactionOptions};

use super::forms::{Attempt, Keys};
use super::model::{Applied, At, FORMS, Form, KINDS, Point, Reported, is_known};
use rediscope_testing::proxy::{Fault, Proxy, Script, Trigger};
use rediscope_testing::server::Server;
use rediscope_testing::{eventually, try_for, unique};

/// Number of pairs of a proxy and a pool that work at the same time. They mostly wait for timeouts.
const WORKERS: usize = 48;
/// Response timeout, which each cell with a silent server waits for. Long enough for a busy machine,
/// short enough for 2,000 such cells.
const RESPONSE: Duration = Duration::from_millis(300);
const CLEANUP: Duration = Duration::from_millis(300);

/// All cells of one form under one kind of cut. They share a proxy and a pool of one connection,
/// so that each cell is also the next caller after the one before.
struct Group {
    form: &'static Form,
    kind: Fault,
    first: usize,
    points: Vec<Point>,
    /// What was returned in each cell, if it is one of the rows.
    reported: Vec<OnceLock<Reported>>,
    /// What a silence costs.
    response: Duration,
}

fn groups() -> Vec<Group> {
    let mut first = 0;
    let mut groups = Vec::new();
    for form in FORMS.iter().filter(|form| form.is_written()) {
        for &kind in KINDS {
            let points = form.cells(kind);
            let next = first + points.len();
            groups.push(Group::new(form, kind, first, points, RESPONSE));
            first = next;
        }
    }
    // The longest first, or the last ones would keep a few workers busy and the others idle.
    groups.sort_by_key(|group| Reverse((!is_known(group.kind), group.points.len())));
    groups
}

#[test]
fn every_cut_of_every_form_has_its_true_outcome_and_leaves_the_pool_clean() {
    let server = Server::start();
    let groups = groups();
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let played = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some(group) = groups.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let failed = group.play(&server);
                    played.fetch_add(group.points.len(), Ordering::Relaxed);
                    failures.lock().unwrap().extend(failed);
                }
            });
        }
    });
    let mut failures = failures.into_inner().unwrap();
    // Nothing is on its way any more: what was applied once, or never, must have stayed so.
    let lies: Vec<String> = groups.iter().flat_map(|group| group.lies(&server)).collect();
    assert!(lies.is_empty(), "{}", lies.join("\n"));
    failures.extend(groups.iter().flat_map(|group| group.audit(&server)));
    let cells: usize = groups.iter().map(|group| group.points.len()).sum();
    println!("{cells} cells: {} forms, {} kinds of cut", FORMS.len(), KINDS.len());
    assert_eq!(played.into_inner(), cells);
    let failures = again(&server, failures, cells);
    assert!(failures.is_empty(), "{} of {cells}:\n{}", failures.len(), failures.join("\n"));
}

/// Plays alone, and with four times the time, what failed: all cells at once keep a small machine
/// so busy that a healthy server may miss a deadline. What fails here too is a failure. (What was
/// returned and not true is one already: no load excuses that.)
fn again(server: &Server, failed: Vec<Failed>, cells: usize) -> Vec<String> {
    assert!(failed.len() <= cells / 20, "{} of {cells} cells failed: {failed:#?}", failed.len());
    let mut failures = Vec::new();
    for (nth, cell) in failed.into_iter().enumerate() {
        println!("played again alone: {}: {}", cell.name, cell.why);
        let Failed { form, kind, point, .. } = cell;
        let first = cells + nth;
        let group = Group::new(form, kind, first, vec![point], 4 * RESPONSE);
        let failed = group.play(server).into_iter().chain(group.audit(server));
        failures.extend(failed.map(|failed| format!("{}: {}", failed.name, failed.why)));
        failures.extend(group.lies(server));
    }
    failures
}

/// A cell whose result is not the one of `model`.
#[derive(Debug)]
struct Failed {
    form: &'static Form,
    kind: Fault,
    point: Point,
    name: String,
    why: String,
}

impl Group {
    fn new(
        form: &'static Form,
        kind: Fault,
        first: usize,
        points: Vec<Point>,
        response: Duration,
    ) -> Self {
        let reported = points.iter().map(|_| OnceLock::new()).collect();
        Self { form, kind, first, points, reported, response }
    }

    fn expected(&self, nth: usize) -> (Reported, Applied) {
        self.form.expected(&self.points[nth], self.kind)
    }

    fn keys(&self, nth: usize) -> Keys {
        Keys::of(self.first + nth)
    }

    fn name(&self, nth: usize) -> String {
        let Point { flight, at } = self.points[nth];
        format!("{} / {:?} / flight {flight}, {at:?}", self.form.name, self.kind)
    }

    fn failed(&self, nth: usize, why: String) -> Failed {
        let (point, name) = (self.points[nth], self.name(nth));
        Failed { form: self.form, kind: self.kind, point, name, why }
    }

    /// The cells in which the server holds what it cannot hold if the call returned the truth, whether
    /// or not that was what `model` expects.
    fn lies(&self, server: &Server) -> Vec<String> {
        let lie = |nth: usize| {
            let (reported, found) = (self.reported[nth].get(), self.applied(server, nth));
            let holds = match (reported, &found) {
                (_, Err(_)) => false,
                (Some(Reported::InDoubt { .. }) | None, Ok(_)) => true,
                (Some(reported), Ok(applied)) => *applied == (*reported == Reported::Committed),
            };
            (!holds)
                .then(|| format!("{}: returned {reported:?}, applied: {found:?}", self.name(nth)))
        };
        (0..self.points.len()).filter_map(lie).collect()
    }

    /// Whether what is on the server in the end is what each cell must have left there.
    fn audit(&self, server: &Server) -> Vec<Failed> {
        let check = |nth| {
            let wanted = self.expected(nth).1 != Applied::Never;
            let found = self.applied(server, nth);
            let why = || format!("in the end applied: {found:?}");
            (found != Ok(wanted)).then(|| self.failed(nth, why()))
        };
        (0..self.points.len()).filter_map(check).collect()
    }

    fn play(&self, server: &Server) -> Vec<Failed> {
        let proxy = Proxy::to(server);
        // A trusted connection is trusted for as long as the test may take.
        let trust = Duration::from_secs(if self.form.trusted { 3600 } else { 0 });
        let mut builder = SessionManager::builder(proxy.url())
            .max_size(1)
            .trust_window(trust)
            .connect_timeout(Duration::from_secs(2))
            .response_timeout(self.response)
            .cleanup_timeout(CLEANUP);
        if self.form.is_chunked() {
            builder = builder.flush_bytes(self.keys(0).flush_bytes());
        }
        let sessions = builder.build_side().unwrap();
        let mut failures = Vec::new();
        for nth in 0..self.points.len() {
            let cell = || self.cell(nth, server, &proxy, &sessions);
            let outcome = catch_unwind(AssertUnwindSafe(cell));
            let failed = outcome.unwrap_or_else(|panic| {
                let text = panic.downcast::<String>().map_or("a panic".to_owned(), |text| *text);
                Err(format!("panicked: {text}"))
            });
            proxy.disarm();
            proxy.release();
            if let Err(why) = failed {
                failures.push(self.failed(nth, why));
            }
        }
        failures
    }

    fn cell(
        &self,
        nth: usize,
        server: &Server,
        proxy: &Proxy,
        sessions: &SessionManager,
    ) -> Result<(), String> {
        let (point, keys) = (&self.points[nth], self.keys(nth));
        let (reported, applied) = self.expected(nth);
        server.ask::<()>(&["SET", &keys.watched, "7"]);
        clean_caller(sessions, server, &keys.watched)?;
        crate::side::open_lanes(sessions, "nothing");

        let fired = proxy.fired();
        // The last of the user's gaps before the cut: what has the same name earlier is spared.
        let gaps = (0..=point.flight).filter(|flight| self.form.has_users_gap(*flight));
        let armed_at = gaps.max().unwrap_or(0);
        let mut arming = Duration::ZERO;
        let mut gap = |flight: usize| {
            if flight == armed_at {
                let begun = Instant::now();
                self.arm(point, proxy);
                arming += begun.elapsed();
            }
        };
        let touch = || server.ask(&["SET", &keys.watched, "8"]);
        let attempt = Attempt { form: self.form, keys: &keys, gap: &mut gap, touch: &touch };
        let begun = Instant::now();
        let outcome = attempt.play(&sessions.transactional());
        let took = begun.elapsed() - arming;
        if let Ok(reported) = outcome {
            self.reported[nth].set(reported).unwrap();
        }

        // Behind the last reply the call may return while the proxy is still at it.
        if try_for(SOON, || (proxy.fired() > fired).then_some(())).is_none() {
            return Err(format!("the fault did not fire; returned {outcome:?}"));
        }
        if outcome != Ok(reported) {
            return Err(format!("returned {outcome:?}, not {reported:?}"));
        }
        if took > self.response + CLEANUP + SLACK {
            return Err(format!("took {took:?}"));
        }
        let status = sessions.status().transactional;
        if (status.in_use, status.waiting) != (0, 0) || status.size > 1 {
            return Err(format!("the pool was not whole when the call returned: {status}"));
        }
        if point.at == At::Over && !is_known(self.kind) {
            // A trusted lane learns of a silence by a reply that does not come.
            crate::side::open_lanes(sessions, "nothing");
        }
        clean_caller(sessions, server, &unique("unrelated"))?;
        if applied == Applied::OnceLate && self.applied(server, nth)? {
            return Err("a held EXEC was applied early".to_owned());
        }
        proxy.release();
        match applied {
            Applied::Never if self.applied(server, nth)? => Err("was applied".to_owned()),
            Applied::Never => Ok(()),
            _ => try_for(SOON, || (self.applied(server, nth) == Ok(true)).then_some(()))
                .ok_or_else(|| format!("was not applied once: {:?}", self.applied(server, nth))),
        }?;
        clean_caller(sessions, server, &keys.watched)
    }

    fn arm(&self, point: &Point, proxy: &Proxy) {
        if !self.form.is_users_gap(point) {
            return proxy.arm(Script::from((self.form.trigger(point), self.kind)).once());
        }
        proxy.arm((Trigger::Now, self.kind));
        proxy.disarm();
        if self.kind == Fault::Reset && cfg!(target_os = "linux") {
            eventually(SOON, "the client's kernel knows of the reset", || {
                !has_client(proxy.port())
            });
        }
    }

    /// Whether the cell's transaction was applied; an `Err` when it was in part, or twice.
    fn applied(&self, server: &Server, nth: usize) -> Result<bool, String> {
        let keys = self.keys(nth);
        let number: Option<i64> = server.ask(&["GET", &keys.number]);
        let hash: Option<i64> = server.ask(&["HGET", &keys.hash, "field"]);
        let list: i64 = server.ask(&["LLEN", &keys.list]);
        let chunked = self.form.is_chunked();
        match (number, hash, list) {
            (None, None, 0) => Ok(false),
            (Some(1), Some(1), length) if length == i64::from(chunked) => Ok(true),
            other => Err(format!("applied in part or more than once: {other:?}")),
        }
    }
}

/// Works on whatever connection the pool has: first with a change of `key`, which a WATCH left
/// behind would not forgive, then once more, so that a reply too many would be noticed. Then on the lanes.
fn clean_caller(sessions: &SessionManager, server: &Server, key: &str) -> Result<(), String> {
    server.ask::<()>(&["SET", key, "7"]);
    let unrelated = unique("next");
    // Nothing is repeated: a nil EXEC would be hidden by that.
    let options = TransactionOptions::new().retry(RetryPolicy::never());
    let accounts = sessions.transactional().with(options.clone());
    let immediate = accounts.with(options.begin(Begin::Immediate));
    for (nth, accounts) in [(1, immediate), (2, accounts)] {
        let word = unique("word");
        let (echo, number) = accounts
            .run(|tx| {
                let echo = tx.queue::<String>(cmd("ECHO").arg(&word).to_owned());
                Ok((echo, tx.incr(&unrelated, 1)))
            })
            .map_err(|error| format!("the next borrower: {error}"))?;
        if (echo, number) != (word, nth) {
            return Err("the next borrower was given another caller's replies".to_owned());
        }
    }
    for nth in (0..).take(LANES) {
        let accounts =
            sessions.transactional().with(TransactionOptions::new().retry(RetryPolicy::never()));
        let run =
            accounts.run(|tx| Ok((tx.append(&unrelated, "."), tx.get::<_, String>(&unrelated))));
        let (length, text) =
            run.map_err(|error| format!("the next borrower of a lane: {error}"))?;
        if (length as usize, text) != (2 + nth, format!("2{}", ".".repeat(nth + 1))) {
            return Err("the next borrower of a lane was given another caller's replies".to_owned());
        }
    }
    server.ask::<()>(&["DEL", &unrelated]);
    Ok(())
}

/// Whether this process has an established connection to the port, by the kernel's own list.
pub(crate) fn has_client(port: u16) -> bool {
    let list = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let remote = format!(":{port:04X}");
    list.lines().skip(1).any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields[2].ends_with(&remote) && fields[3] == "01"
    })
}
