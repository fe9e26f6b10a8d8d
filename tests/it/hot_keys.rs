//! Blocks on a hot key: each one's WATCH and declared reads travel behind the EXEC of the block before it,
//! whose turn and connection it gets, and neither changes what becomes of the other.
//!
//! Guarantee: turns

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Barrier, Mutex};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use rediscope::error::{Applied, CheckoutError};
use rediscope::redis::cmd;
use rediscope::status::CloseReason;
use rediscope::{Builder, CommitError, Error, RetryPolicy, TransactionOptions, prelude::*};

use crate::early_watches::{NOT_OK, Taken, UNPROVEN};
use crate::fixture::{SLACK, SOON, heat, unhurried};
use crate::side::{BuildSide, SessionManager, Transactional, settled, threads_only};
use rediscope_testing::cluster::Cluster;
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Proxy, Script, Trigger};
use rediscope_testing::server::Server;

/// Time of a block that is to give up its wait.
const SHORT: Duration = Duration::from_millis(400);

/// Number of commits without a write after which a key is not hot.
const COOLING: usize = 32;

struct Fixture {
    proxy: Proxy,
    server: Server,
    sessions: SessionManager,
}

fn patient() -> RetryPolicy {
    RetryPolicy::default().attempts(10_000).deadline(6 * SOON)
}

/// Connections that are always trusted, and the hot key `stock` of 10.
fn start(connections: u32) -> Fixture {
    start_with(connections, |builder| builder)
}

fn start_with(connections: u32, change: impl FnOnce(Builder) -> Builder) -> Fixture {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let builder = SessionManager::builder(proxy.url()).max_size(connections).trust_window(SOON);
    let builder = builder.checkout_timeout(3 * SOON).response_timeout(SOON);
    let sessions = change(builder).without_lanes().build_side().unwrap();
    server.ask::<()>(&["SET", "stock", "10"]);
    let fixture = Fixture { proxy, server, sessions };
    heat(&fixture.accounts(), &fixture.server, "stock");
    fixture.proxy.take_journal();
    fixture
}

impl Fixture {
    fn accounts(&self) -> Transactional {
        self.sessions.transactional().with(TransactionOptions::new().retry(patient()))
    }

    fn with(&self, options: TransactionOptions) -> Transactional {
        self.accounts().with(options)
    }

    fn sent(&self) -> Vec<String> {
        self.proxy.take_journal().into_iter().map(|(_, name)| name.to_uppercase()).collect()
    }

    fn stock(&self) -> i64 {
        self.server.ask(&["GET", "stock"])
    }

    fn arm(&self, trigger: Trigger, fault: Fault) {
        self.proxy.arm(Script::from((trigger, fault)).once());
    }

    fn waiting(&self, callers: usize) {
        eventually(SOON, "the callers wait", || {
            self.sessions.status().transactional.waiting == callers
        });
    }

    fn conflicts(&self) -> u64 {
        self.sessions.status().transactional.counts.conflicts
    }

    /// No connection watches or is in MULTI, no turn is lost, and the next blocks are applied.
    #[track_caller]
    fn is_whole(&self) {
        settled(&self.sessions);
        let pool = self.sessions.status().transactional;
        assert_eq!((pool.in_use, pool.waiting, pool.scopes.len()), (0, 0, 0), "{pool}");
        // A watch that was left on a connection would make EXEC nil.
        self.server.ask::<()>(&["INCRBY", "stock", "0"]);
        assert!(self.accounts().run(|tx| Ok(tx.incr("other", 1))).unwrap() > 0);
        let begun = Instant::now();
        let before = self.stock();
        assert_eq!(take_one(&self.accounts(), |_| {}).unwrap(), (before, 1));
        assert!(begun.elapsed() < SOON, "a turn was lost");
    }
}

/// Takes one from the stock, by a declared read. Returns what it found, and in how many attempts.
fn take_one(accounts: &Transactional, meanwhile: impl Fn(u32) + Send) -> Taken {
    let mut watch = accounts.watch(["stock"]);
    let read = watch.declare::<i64>(cmd("GET").arg("stock").to_owned())?;
    let mut last = (0, 0);
    let found = &mut last;
    watch.run(move |reads, tx| {
        *found = (reads.declared(read)?, reads.attempt());
        meanwhile(found.1);
        Ok(tx.set("stock", found.0 - 1))
    })?;
    Ok(last)
}

/// Runs it on a thread, and returns once that thread waits: it sends nothing before its turn. One that
/// needs no turn may have ended.
pub(crate) fn waits<'s, T: Send + 's>(
    scope: &'s Scope<'s, '_>,
    run: impl FnOnce() -> T + Send + 's,
) -> ScopedJoinHandle<'s, T> {
    let (sender, receiver) = channel();
    let handle = scope.spawn(move || {
        sender.send(fs::read_link("/proc/thread-self").unwrap()).unwrap();
        run()
    });
    let place = receiver.recv().unwrap();
    let stat = std::path::Path::new("/proc").join(place).join("stat");
    eventually(SOON, "the thread sleeps or has ended", || {
        let stat = fs::read_to_string(&stat).unwrap_or_default();
        let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
        state.is_none_or(|state| state == 'S')
    });
    handle
}

/// A closure that waits until it is let go, the first time that it runs.
fn gate() -> (impl Fn(u32) + Send + Sync, Receiver<()>, Sender<()>) {
    let ((inside, is_inside), (go, may_go)) = (channel(), channel());
    let (may_go, has_run) = (Mutex::new(may_go), AtomicBool::new(false));
    let wait = move |_| {
        if !has_run.swap(true, Ordering::Relaxed) {
            inside.send(()).unwrap();
            let _: Result<(), _> = may_go.lock().unwrap().recv();
        }
    };
    (wait, is_inside, go)
}

/// A block of `holder` has its turn while blocks of the `waiting` begin to wait, then `meanwhile` runs, and
/// the block goes on.
fn behind(
    fixture: &Fixture,
    holder: &Transactional,
    waiting: &[&Transactional],
    meanwhile: impl FnOnce(),
) -> (Taken, Vec<Taken>) {
    thread::scope(|scope| {
        let (wait, is_inside, go) = gate();
        let held = scope.spawn(move || take_one(holder, wait));
        is_inside.recv().unwrap();
        let waiting: Vec<_> =
            waiting.iter().map(|accounts| waits(scope, || take_one(accounts, |_| {}))).collect();
        assert_eq!(fixture.sessions.status().transactional.waiting, 0, "no connection is awaited");
        meanwhile();
        go.send(()).unwrap();
        let held = held.join().unwrap();
        (held, waiting.into_iter().map(|waits| waits.join().unwrap()).collect())
    })
}

#[test]
fn blocks_that_wait_for_a_key_travel_behind_each_other_in_the_order_of_arrival() {
    let fixture = start(8);
    let accounts = fixture.accounts();
    let (turns, conflicts) = (fixture.proxy.turns(), fixture.conflicts());
    let (held, waited) = behind(&fixture, &accounts, &[&accounts; 5], || {});
    assert_eq!(held.unwrap(), (10, 1));
    let waited: Vec<_> = waited.into_iter().map(Result::unwrap).collect();
    assert_eq!(waited, [(9, 1), (8, 1), (7, 1), (6, 1), (5, 1)]);
    assert_eq!(fixture.sent(), ["WATCH", "GET", "MULTI", "SET", "EXEC"].repeat(6));
    assert_eq!(fixture.proxy.turns() - turns, 7, "one packet a commit");
    assert_eq!((fixture.proxy.accepted(), fixture.conflicts() - conflicts), (1, 0));
    assert_eq!(fixture.stock(), 4);
    fixture.is_whole();
}

#[test]
fn blocks_of_one_process_on_a_hot_key_meet_no_conflict() {
    let fixture = start(8);
    let accounts = fixture.accounts();
    let (turns, conflicts) = (fixture.proxy.turns(), fixture.conflicts());
    thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| {
                for _ in 0..20 {
                    assert_eq!(take_one(&accounts, |_| {}).unwrap().1, 1);
                }
            });
        }
    });
    assert_eq!(fixture.stock(), 10 - 64 * 20);
    assert_eq!(fixture.conflicts() - conflicts, 0);
    println!("{} packets for {} commits", fixture.proxy.turns() - turns, 64 * 20);
    fixture.is_whole();
}

#[test]
fn the_writes_of_another_process_are_seen_as_conflicts() {
    let fixture = start(8);
    let accounts = fixture.accounts();
    let ends = AtomicBool::new(false);
    thread::scope(|scope| {
        let foreign = scope.spawn(|| {
            let mut connection = fixture.server.connection();
            let mut taken = 0;
            while !ends.load(Ordering::Relaxed) {
                cmd("DECR").arg("stock").exec(&mut connection).unwrap();
                taken += 1;
                thread::sleep(Duration::from_micros(500));
            }
            taken
        });
        let blocks: Vec<_> = (0..16)
            .map(|_| {
                scope.spawn(|| {
                    (0..30).for_each(|_| _ = take_one(&accounts, |_| {}).unwrap());
                })
            })
            .collect();
        blocks.into_iter().for_each(|block| block.join().unwrap());
        ends.store(true, Ordering::Relaxed);
        assert_eq!(fixture.stock(), 10 - 16 * 30 - foreign.join().unwrap());
    });
    fixture.is_whole();
}

#[test]
fn a_block_undone_by_another_process_is_first_in_the_queue_again() {
    let fixture = start(8);
    let accounts = fixture.accounts();
    let change = || fixture.server.ask::<()>(&["SET", "stock", "100"]);
    let (held, waited) = behind(&fixture, &accounts, &[&accounts; 8], change);
    // The next one has what the other process has written. Others may be taken before it waits again.
    let waited: Vec<_> = waited.into_iter().map(Result::unwrap).collect();
    assert_eq!(waited[0], (100, 1));
    assert!(waited.iter().all(|(_, attempts)| *attempts == 1), "{waited:?}");
    let (found, attempts) = held.unwrap();
    assert!((93..=99).contains(&found) && attempts == 2, "{found}, {attempts}: {waited:?}");
    assert_eq!((fixture.stock(), fixture.proxy.accepted()), (91, 1));
    assert_eq!(fixture.sent(), ["WATCH", "GET", "MULTI", "SET", "EXEC"].repeat(10));
    fixture.is_whole();
}

/// All of them are inside their closures at once.
#[track_caller]
fn all_at_once(accounts: &Transactional, blocks: usize) {
    let barrier = Barrier::new(blocks);
    thread::scope(|scope| {
        for _ in 0..blocks {
            scope.spawn(|| {
                let read = accounts.watch(["stock"]).run(|_, tx| {
                    barrier.wait();
                    Ok(tx.incr("other", 1))
                });
                read.unwrap();
            });
        }
    });
}

#[test]
fn blocks_that_do_not_write_the_key_they_watch_run_at_once_although_others_write_it() {
    let server = Server::start();
    let sessions = SessionManager::builder(server.url()).max_size(32).checkout_timeout(3 * SOON);
    let sessions = sessions.build_side().unwrap();
    let accounts = sessions.transactional();
    // A conflict of a block that only reads the key is no reason for turns.
    let seen = accounts.watch(["stock"]).run(|read, tx| {
        if read.attempt() == 1 {
            server.ask::<()>(&["SET", "stock", "1"]);
        }
        Ok(tx.incr("other", 1))
    });
    seen.unwrap();
    all_at_once(&accounts, 32);
    // And turns end.
    heat(&accounts, &server, "stock");
    for _ in 0..COOLING {
        accounts.watch(["stock"]).run(|_, tx| Ok(tx.incr("other", 1))).unwrap();
    }
    all_at_once(&accounts, 32);
}

#[test]
fn blocks_that_wait_go_on_at_once_when_the_key_is_not_hot_any_more() {
    let fixture = start(16);
    let accounts = fixture.accounts();
    for _ in 2..COOLING {
        accounts.watch(["stock"]).run(|_, tx| Ok(tx.incr("other", 1))).unwrap();
    }
    let barrier = Barrier::new(8);
    thread::scope(|scope| {
        let (wait, is_inside, go) = gate();
        let (accounts, barrier) = (&accounts, &barrier);
        scope.spawn(move || {
            let watch = accounts.watch(["stock"]);
            watch.run(|reads, tx| {
                wait(reads.attempt());
                Ok(tx.incr("other", 1))
            })
        });
        is_inside.recv().unwrap();
        let waiting: Vec<_> = (0..9)
            .map(|nth| {
                waits(scope, move || {
                    accounts.watch(["stock"]).run(|_, tx| {
                        // The first one ends the turns.
                        if nth > 0 {
                            barrier.wait();
                        }
                        Ok(tx.incr("other", 1))
                    })
                })
            })
            .collect();
        go.send(()).unwrap();
        waiting.into_iter().for_each(|waits| _ = waits.join().unwrap().unwrap());
    });
    fixture.is_whole();
}

#[test]
fn a_block_attempts_without_a_turn_after_a_part_of_its_policys_time() {
    let fixture = start(2);
    let accounts = fixture.accounts();
    let short = fixture.with(TransactionOptions::new().retry(patient().deadline(SHORT)));
    thread::scope(|scope| {
        let (wait, is_inside, go) = gate();
        let accounts = &accounts;
        let held = scope.spawn(move || take_one(accounts, wait));
        is_inside.recv().unwrap();
        let late = scope.spawn(|| take_one(&short, |_| {}));
        assert_eq!(late.join().unwrap().unwrap(), (10, 1));
        go.send(()).unwrap();
        assert_eq!(held.join().unwrap().unwrap(), (9, 2), "a conflict with it");
    });
    fixture.is_whole();
}

/// The longest wait in commits of the others, which a busy machine does not make longer.
#[test]
fn blocks_on_a_hot_key_hand_their_connection_back_to_others() {
    let fixture = start(1);
    let accounts = fixture.accounts();
    let ends = AtomicBool::new(false);
    let (mut longest, mut waited) = (0, Duration::ZERO);
    thread::scope(|scope| {
        let chains: Vec<_> = (0..64)
            .map(|_| {
                scope.spawn(|| {
                    while !ends.load(Ordering::Relaxed) {
                        take_one(&accounts, |_| {}).unwrap();
                    }
                })
            })
            .collect();
        eventually(SOON, "the blocks run", || fixture.stock() < -100);
        for _ in 0..50 {
            let (before, begun) = (fixture.stock(), Instant::now());
            let after = accounts.run(|tx| Ok(tx.get::<_, i64>("stock"))).unwrap();
            longest = longest.max(before - after);
            waited = waited.max(begun.elapsed());
        }
        ends.store(true, Ordering::Relaxed);
        chains.into_iter().for_each(|chain| chain.join().unwrap());
    });
    println!("at most {longest} commits, {waited:?}");
    // Of at most 64 commits, and of those before the question was sent.
    assert!(longest < 400, "{longest} commits before a plain block");
    assert!(waited < SLACK, "{waited:?}");
    fixture.is_whole();
}

#[test]
fn a_block_on_the_same_key_goes_before_those_that_wait_for_a_connection() {
    eventually(3 * SOON, "the blocks met within the time that a connection is kept", || {
        let fixture = start(1);
        let accounts = &fixture.accounts();
        let order = &Mutex::new(Vec::new());
        let block = move |key: &'static str, name: &'static str| {
            let mut watch = accounts.watch([key]);
            let read = watch.declare::<i64>(cmd("STRLEN").arg(key).to_owned()).unwrap();
            let run = watch.run(|reads, tx| {
                reads.declared(read)?;
                Ok(tx.set(key, 1))
            });
            run.unwrap();
            order.lock().unwrap().push(name);
        };
        thread::scope(|scope| {
            let mut tx = accounts.begin().unwrap();
            tx.incr("other", 1);
            let waiting = || fixture.sessions.status().transactional.waiting;
            scope.spawn(move || block("stock", "first"));
            eventually(SOON, "it waits for the connection", || waiting() == 1);
            scope.spawn(move || block("another", "third"));
            eventually(SOON, "it waits for the connection", || waiting() == 2);
            waits(scope, move || block("stock", "second"));
            tx.commit().unwrap();
        });
        fixture.is_whole();
        *order.lock().unwrap() == ["first", "second", "third"]
    });
}

#[test]
fn blocks_with_other_keys_wait_for_their_turns_and_meet_no_conflict() {
    let fixture = start(8);
    let accounts = fixture.accounts();
    let keys = ["stock", "b", "c"];
    keys.iter().for_each(|key| heat(&accounts, &fixture.server, key));
    let sets: [&[&str]; 5] =
        [&["stock"], &["b"], &["stock", "b"], &["c", "stock"], &["b", "c", "stock"]];
    let (counted, conflicts) = (AtomicU64::new(0), fixture.conflicts());
    thread::scope(|scope| {
        for worker in 0..24 {
            let (accounts, counted) = (&accounts, &counted);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(worker);
                for _ in 0..25 {
                    let set = sets[random.usize(..sets.len())];
                    let mut watch = accounts.watch(set);
                    let reads: Vec<_> = set
                        .iter()
                        .map(|key| {
                            let get = cmd("GET").arg(key).to_owned();
                            watch.declare::<Option<i64>>(get).unwrap()
                        })
                        .collect();
                    watch
                        .run(|values, tx| {
                            for (key, read) in set.iter().zip(&reads) {
                                let value = values.declared(*read)?.unwrap_or_default();
                                tx.set(*key, value + 1);
                            }
                            Ok(())
                        })
                        .unwrap();
                    counted.fetch_add(set.len() as u64, Ordering::Relaxed);
                }
            });
        }
    });
    let sum: u64 = keys.iter().map(|key| fixture.server.ask::<u64>(&["GET", key])).sum();
    assert_eq!(sum, 10 + counted.into_inner());
    assert_eq!(fixture.conflicts() - conflicts, 0);
    fixture.is_whole();
}

#[test]
fn a_block_inside_a_block_with_a_turn_does_not_wait_for_it() {
    let fixture = start(2);
    let accounts = fixture.accounts();
    thread::scope(|scope| {
        let (wait, is_inside, go) = gate();
        let accounts = &accounts;
        let held = scope.spawn(move || {
            take_one(accounts, |attempt| {
                wait(attempt);
                if attempt == 1 {
                    assert_eq!(take_one(accounts, |_| {}).unwrap(), (10, 1));
                }
            })
        });
        is_inside.recv().unwrap();
        let next = waits(scope, || take_one(accounts, |_| {}));
        go.send(()).unwrap();
        assert_eq!(next.join().unwrap().unwrap(), (9, 1), "behind the block that was undone");
        assert_eq!(held.join().unwrap().unwrap(), (8, 2));
    });
    fixture.is_whole();
}

/// The next block gets the turn although the one before it ends without EXEC, or with an error of EXEC.
#[test]
fn a_block_that_gives_up_leaves_its_turn_and_nothing_on_the_connection() {
    for options in [TransactionOptions::new(), exactly_once()] {
        let fixture = start(1);
        let accounts = &fixture.with(options);
        accounts.run(|tx| Ok(tx.incr("other", 1))).unwrap();
        thread::scope(|scope| {
            let (wait, is_inside, go) = gate();
            let holder = scope.spawn(move || take_one(accounts, wait));
            is_inside.recv().unwrap();
            let gives_up = waits(scope, || {
                let mut watch = accounts.watch(["stock"]);
                let read = watch.declare::<i64>(cmd("GET").arg("stock").to_owned()).unwrap();
                watch.run(|reads, tx| {
                    assert_eq!(reads.declared(read)?, 9);
                    tx.set("stock", 0);
                    Err::<(), _>(Error::NoKeys)
                })
            });
            let panics = waits(scope, || {
                catch_unwind(AssertUnwindSafe(|| take_one(accounts, |_| panic!("its own"))))
            });
            let last = waits(scope, || take_one(accounts, |_| {}));
            fixture.sent();
            go.send(()).unwrap();
            assert_eq!(holder.join().unwrap().unwrap(), (10, 1));
            assert!(matches!(gives_up.join().unwrap(), Err(Error::NoKeys)));
            panics.join().unwrap().unwrap_err();
            assert_eq!(last.join().unwrap().unwrap(), (9, 1));
        });
        let sent = fixture.sent();
        assert!(sent.contains(&"UNWATCH".to_owned()), "{sent:?}");
        assert_eq!(fixture.stock(), 8);
        fixture.is_whole();
    }
}

#[test]
fn a_block_that_asks_for_another_attempt_leaves_its_turn_during_its_backoff() {
    let fixture = start(2);
    let accounts = &fixture.accounts();
    // It waits for what another block of the process does.
    thread::scope(|scope| {
        let (wait, is_inside, go) = gate();
        let asks = scope.spawn(move || {
            accounts.watch(["stock"]).run(|read, tx| {
                wait(read.attempt());
                let stock: i64 = read.get("stock")?;
                if stock == 10 {
                    return Err(read.run_again());
                }
                Ok(tx.set("stock", stock - 1))
            })
        });
        is_inside.recv().unwrap();
        let next = waits(scope, || take_one(accounts, |_| {}));
        go.send(()).unwrap();
        assert_eq!(next.join().unwrap().unwrap(), (10, 1));
        asks.join().unwrap().unwrap();
    });
    assert_eq!(fixture.stock(), 8);
    fixture.is_whole();
}

fn exactly_once() -> TransactionOptions {
    TransactionOptions::new().exactly_once()
}

#[test]
fn exactly_once_the_register_is_watched_before_the_keys_of_the_next_block() {
    let fixture = start(1);
    let once = fixture.with(exactly_once());
    let accounts = fixture.accounts();
    once.run(|tx| Ok(tx.incr("other", 1))).unwrap();
    fixture.sent();
    let (held, waited) = behind(&fixture, &once, &[&once; 3], || {});
    assert_eq!(held.unwrap(), (10, 1));
    let waited: Vec<_> = waited.into_iter().map(Result::unwrap).collect();
    assert_eq!(waited, [(9, 1), (8, 1), (7, 1)]);
    let mut fenced = ["WATCH", "GET", "MULTI", "SET", "SET", "EXEC", "WATCH"].repeat(4);
    assert_eq!(fixture.sent(), fenced);
    fenced.truncate(7);
    // A watch that needs no register would find it changed when it expires.
    let (held, waited) = behind(&fixture, &once, &[&accounts], || {});
    assert_eq!(
        (held.unwrap(), waited.into_iter().map(Result::unwrap).collect()),
        ((6, 1), vec![(5, 1)])
    );
    assert_eq!(fixture.sent()[..fenced.len()], fenced);
    assert_eq!(fixture.proxy.accepted(), 1);
    // A plain block leaves the register unwatched, and arming it is a write.
    let (held, waited) = behind(&fixture, &accounts, &[&once], || {});
    assert_eq!(held.unwrap(), (4, 1));
    assert_eq!(waited.into_iter().map(Result::unwrap).collect::<Vec<_>>(), [(3, 1)]);
    fixture.is_whole();
}

#[test]
fn exactly_once_a_conflict_costs_the_next_block_neither_its_connection_nor_a_register() {
    let fixture = start(1);
    let once = fixture.with(exactly_once());
    take_one(&once, |_| {}).unwrap();
    let opened = fixture.proxy.accepted();
    let registers = || fixture.server.ask::<Vec<String>>(&["KEYS", "*reg:*"]).len();
    let written = registers();
    let change = || fixture.server.ask::<()>(&["SET", "stock", "100"]);
    let (held, waited) = behind(&fixture, &once, &[&once, &once], change);
    assert_eq!(held.unwrap().1, 2);
    waited.into_iter().for_each(|taken| assert_eq!(taken.unwrap().1, 1));
    assert_eq!((fixture.proxy.accepted(), registers(), fixture.stock()), (opened, written, 97));
    fixture.is_whole();
}

#[test]
fn exactly_once_a_block_begins_again_if_the_register_is_not_watched() {
    let fixture = start(2);
    let once = fixture.with(exactly_once());
    once.run(|tx| Ok(tx.incr("other", 1))).unwrap();
    let refuse =
        || fixture.arm(Trigger::BeforeReplyTo("WATCH"), Fault::Answer("-NOPERM a proxy's\r\n"));
    let (held, waited) = behind(&fixture, &once, &[&once], refuse);
    assert_eq!(held.unwrap(), (10, 1));
    assert_eq!(waited.into_iter().map(Result::unwrap).collect::<Vec<_>>(), [(9, 1)]);
    assert_eq!(fixture.proxy.accepted(), 2, "its connection was closed");
    fixture.is_whole();
}

#[test]
fn exactly_once_a_block_whose_doubt_is_resolved_holds_up_no_other_one() {
    let fixture = start(8);
    let once = fixture.with(exactly_once());
    thread::scope(|scope| {
        let (wait, is_inside, go) = gate();
        let held = scope.spawn(|| take_one(&once, wait));
        is_inside.recv().unwrap();
        let next = waits(scope, || take_one(&once, |_| {}));
        let script = Script::from((Trigger::BeforeReplyTo("EXEC"), Fault::Cut))
            .on(Trigger::BeforeReplyTo("PEXPIRE"), Fault::HoldReplies);
        fixture.proxy.arm(script.once());
        go.send(()).unwrap();
        eventually(SOON, "the outcome is asked for", || fixture.proxy.fired() == 2);
        eventually(SOON, "the next block commits", || next.is_finished());
        assert_eq!(next.join().unwrap().unwrap(), (9, 1));
        assert!(!held.is_finished());
        fixture.proxy.release();
        let held = held.join().unwrap();
        assert_eq!(held.map_err(|error| error.applied()), Err(Applied::Yes));
    });
    assert_eq!(fixture.stock(), 8);
    fixture.is_whole();
}

#[test]
fn a_commit_that_sends_more_behind_exec_carries_no_other_block() {
    let fixture = start(2);
    let hour = Duration::from_secs(3600);
    // Past the proxy, so that the lock's own connections do not count.
    let locks = SessionManager::connect(fixture.server.url()).unwrap();
    let lock = locks.lock("l").lease(hour).acquire(SOON).unwrap();
    let plain = TransactionOptions::new;
    let holders = [
        ("WAIT", fixture.with(plain().wait_replicas(0, Duration::from_millis(1)))),
        ("key", fixture.with(plain().exactly_once_as("key", hour))),
        ("lock", fixture.accounts().fenced_by(&lock)),
    ];
    for (what, holder) in holders {
        let accounts = fixture.accounts();
        let stock = fixture.stock();
        let turns = fixture.proxy.turns();
        let (held, waited) = behind(&fixture, &holder, &[&accounts], || {});
        assert_eq!(held.unwrap(), (stock, 1), "{what}");
        assert_eq!(waited.into_iter().map(Result::unwrap).collect::<Vec<_>>(), [(stock - 1, 1)]);
        assert!(fixture.proxy.turns() - turns >= 4, "{what}: {:?}", fixture.sent());
    }
    fixture.is_whole();
}

/// EXEC's reply proves nothing of the connection, so the next block begins on another one.
#[track_caller]
fn begins_again(trigger: Trigger, fault: Fault, is_doubt: bool, was_applied: bool) {
    let fixture = start(1);
    // Not tried again, so that its outcome is seen.
    let once = fixture.with(TransactionOptions::new().retry(RetryPolicy::never()));
    let fail = || fixture.arm(trigger, fault);
    let accounts = fixture.accounts();
    let (held, waited) = behind(&fixture, &once, &[&accounts], fail);
    let applied = held.err().map(|error| error.applied());
    assert_eq!(applied, is_doubt.then_some(Applied::Unknown), "{trigger:?}, {fault:?}");
    let waited: Vec<_> = waited.into_iter().map(Result::unwrap).collect();
    let found = 10 - i64::from(was_applied);
    assert_eq!(waited, [(found, 1)], "{trigger:?}, {fault:?}");
    assert_eq!(fixture.proxy.accepted(), 2, "its connection was closed");
    assert_eq!(fixture.stock(), found - 1);
    fixture.is_whole();
}

#[test]
fn a_block_begins_again_if_the_exec_before_it_proves_nothing() {
    for (trigger, fault, is_doubt, was_applied) in UNPROVEN {
        begins_again(trigger, fault, is_doubt, was_applied);
    }
    for reply in NOT_OK {
        begins_again(Trigger::BeforeReplyTo("WATCH"), Fault::Answer(reply), false, true);
    }
}

#[test]
fn a_block_behind_an_exec_that_the_server_refused_goes_on() {
    let fixture = start(1);
    let accounts = &fixture.accounts();
    thread::scope(|scope| {
        let (wait, is_inside, go) = gate();
        let refused = scope.spawn(move || {
            accounts.watch(["stock"]).run(|reads, tx| {
                wait(reads.attempt());
                Ok(tx.queue::<()>(cmd("SET").arg("alone").to_owned()))
            })
        });
        is_inside.recv().unwrap();
        let next = waits(scope, || take_one(accounts, |_| {}));
        go.send(()).unwrap();
        let refused = refused.join().unwrap();
        assert!(matches!(refused, Err(Error::Commit(CommitError::Rejected { .. }))), "{refused:?}");
        assert_eq!(next.join().unwrap().unwrap(), (10, 1));
    });
    assert_eq!(fixture.proxy.accepted(), 1, "no connection was replaced");
    fixture.is_whole();
}

#[test]
fn a_block_that_gave_up_its_wait_after_it_was_sent_leaves_nothing_on_the_connection() {
    for options in [TransactionOptions::new(), exactly_once()] {
        let fixture = start(2);
        let accounts = &fixture.with(options.clone());
        let short = &accounts.with(TransactionOptions::new().retry(patient().deadline(SHORT)));
        // Both connections are open.
        let other = accounts.begin().unwrap();
        drop(accounts.watch(["nothing"]).begin().unwrap());
        other.discard().unwrap();
        thread::scope(|scope| {
            let (wait, is_inside, go) = gate();
            let holder = scope.spawn(move || take_one(accounts, wait));
            is_inside.recv().unwrap();
            let late = waits(scope, || take_one(short, |_| {}));
            fixture.arm(Trigger::BeforeReplyTo("EXEC"), Fault::HoldReplies);
            go.send(()).unwrap();
            // On another connection, behind the EXEC that was applied.
            assert_eq!(late.join().unwrap().unwrap(), (9, 1));
            fixture.proxy.release();
            assert_eq!(holder.join().unwrap().unwrap(), (10, 1));
        });
        assert_eq!(fixture.stock(), 8);
        fixture.is_whole();
    }
}

#[test]
fn a_manager_that_closes_ends_blocks_that_wait_for_their_turn() {
    let fixture = start(1);
    let accounts = &fixture.accounts();
    thread::scope(|scope| {
        let (wait, is_inside, go) = gate();
        let holder = scope.spawn(move || take_one(accounts, wait));
        is_inside.recv().unwrap();
        let waiting: Vec<_> = (0..3).map(|_| waits(scope, || take_one(accounts, |_| {}))).collect();
        fixture.arm(Trigger::BeforeReplyTo("EXEC"), Fault::HoldReplies);
        go.send(()).unwrap();
        eventually(SOON, "EXEC was applied", || fixture.stock() == 9);
        let closes = scope.spawn(|| fixture.sessions.close(SLACK));
        _ = closes.join().unwrap();
        fixture.proxy.release();
        _ = holder.join().unwrap();
        for waits in waiting {
            let ended = waits.join().unwrap();
            assert!(matches!(ended, Err(Error::Checkout(_) | Error::Lost { .. })), "{ended:?}");
        }
    });
    assert_eq!(fixture.stock(), 9);
}

/// Calls of a closed manager.
fn is_closed<T>(ended: &Result<T, Error>) -> bool {
    matches!(ended, Err(Error::Checkout(CheckoutError::Closed)))
}

#[test]
fn a_manager_that_closes_ends_the_waits_for_a_turn_while_its_holder_goes_on() {
    let fixture = start(4);
    let accounts = &fixture.accounts();
    thread::scope(|scope| {
        let (wait, is_inside, go) = gate();
        let holder = scope.spawn(move || take_one(accounts, wait));
        is_inside.recv().unwrap();
        let waiting: Vec<_> = (0..3).map(|_| waits(scope, || take_one(accounts, |_| {}))).collect();
        let closes = scope.spawn(|| fixture.sessions.close(6 * SOON));
        let begun = Instant::now();
        for waits in waiting {
            let ended = waits.join().unwrap();
            assert!(is_closed(&ended), "{ended:?}");
        }
        let late = take_one(accounts, |_| {});
        assert!(is_closed(&late), "{late:?}");
        assert!(begun.elapsed() < SOON, "they waited for the holder");
        go.send(()).unwrap();
        assert_eq!(holder.join().unwrap().unwrap(), (10, 1), "it had begun before");
        assert_eq!(closes.join().unwrap().scopes, 0);
    });
    assert_eq!(fixture.stock(), 9);
}

#[test]
fn a_block_that_travels_for_its_turn_while_its_manager_closes_ends_at_once() {
    // It would look again after a quarter of that.
    let fixture =
        start_with(1, |builder| builder.response_timeout(8 * SOON).checkout_timeout(18 * SOON));
    let accounts = &fixture.accounts();
    thread::scope(|scope| {
        let (wait, is_inside, go) = gate();
        let holder = scope.spawn(move || take_one(accounts, wait));
        is_inside.recv().unwrap();
        let next = waits(scope, || take_one(accounts, |_| {}));
        fixture.arm(Trigger::BeforeReplyTo("EXEC"), Fault::HoldReplies);
        go.send(()).unwrap();
        eventually(SOON, "EXEC was applied", || fixture.stock() == 9);
        let closes = scope.spawn(|| fixture.sessions.close(SOON));
        let probe = accounts.with(TransactionOptions::new().within(Duration::from_millis(1)));
        eventually(SOON, "the manager is closed", || is_closed(&probe.begin()));
        let begun = Instant::now();
        let ended = next.join().unwrap();
        assert!(is_closed(&ended), "{ended:?}");
        assert!(begun.elapsed() < SOON, "it waited for the reply to EXEC");
        fixture.proxy.release();
        assert_eq!(holder.join().unwrap().unwrap(), (10, 1));
        _ = closes.join().unwrap();
    });
    assert_eq!(fixture.stock(), 9);
}

/// Has a block with the turn do nothing for longer than `max_pin_time`, while others wait.
#[track_caller]
fn a_stuck_block_loses_its_turn(options: TransactionOptions) {
    let fixture = start_with(4, |builder| builder.max_pin_time(SLACK));
    let (accounts, stuck) = (&fixture.accounts(), &fixture.with(options));
    let before = fixture.stock();
    thread::scope(|scope| {
        let (wait, is_inside, go) = gate();
        let holder = scope.spawn(move || take_one(stuck, wait));
        is_inside.recv().unwrap();
        let begun = Instant::now();
        let waiting: Vec<_> = (0..4).map(|_| waits(scope, || take_one(accounts, |_| {}))).collect();
        let mut found: Vec<_> =
            waiting.into_iter().map(|waits| waits.join().unwrap().unwrap()).collect();
        assert!(begun.elapsed() < SOON, "they waited for it");
        found.sort();
        let in_turns = [before - 3, before - 2, before - 1, before].map(|found| (found, 1));
        assert_eq!(found, in_turns, "one at a time");
        // Tasks that wait may take the turn back before.
        eventually(SOON, "its scope is reclaimed", || fixture.sessions.open_scopes().is_empty());
        go.send(()).unwrap();
        let ended = holder.join().unwrap();
        assert!(matches!(ended, Err(Error::PinExpired(_))), "{ended:?}");
    });
    assert_eq!(fixture.stock(), before - 4);
    let conflicts = fixture.conflicts();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..20).for_each(|_| _ = take_one(accounts, |_| {}).unwrap()));
        }
    });
    assert_eq!(fixture.conflicts(), conflicts, "two blocks had the turn");
    fixture.is_whole();
}

#[test]
fn the_turn_of_a_scope_that_was_reclaimed_is_given_to_the_next_block() {
    a_stuck_block_loses_its_turn(TransactionOptions::new());
    // Its WATCH cannot travel, nor can another one behind its EXEC.
    a_stuck_block_loses_its_turn(TransactionOptions::new().exactly_once_as("key", 6 * SOON));
}

/// A block on two hot keys gets the turn on one of them, and attempts when its time for the other is over. Either key
/// may be the first that it waits for.
#[test]
fn the_turn_on_one_of_two_keys_of_a_scope_that_was_reclaimed_is_given_to_the_next_block() {
    for (held, free) in [("stock", "b"), ("b", "stock")] {
        let fixture = start_with(4, |builder| builder.max_pin_time(SLACK));
        let accounts = &fixture.accounts();
        let heated = accounts.watch(["b"]).run(|read, tx| {
            if read.attempt() == 1 {
                fixture.server.ask::<()>(&["SET", "b", "1"]);
            }
            Ok(tx.incr("b", 1))
        });
        heated.unwrap();
        let retry = |time| accounts.with(TransactionOptions::new().retry(patient().deadline(time)));
        let (hasty, unhurried) = (&retry(SLACK / 2), &retry(3 * SOON));
        thread::scope(|scope| {
            let stuck = |accounts: &Transactional, keys: Vec<&'static str>| {
                let (wait, is_inside, go) = gate();
                let accounts = accounts.clone();
                let block = scope.spawn(move || {
                    accounts.watch(keys).run(|read, tx| {
                        wait(read.attempt());
                        Ok(tx.incr("other", 1))
                    })
                });
                is_inside.recv().unwrap();
                (block, go)
            };
            let holder = stuck(accounts, vec![held]);
            let both = stuck(hasty, vec!["stock", "b"]);
            let begun = Instant::now();
            unhurried.watch([free]).run(|_, tx| Ok(tx.incr(free, 1))).unwrap();
            assert!(begun.elapsed() < SOON, "it waited for a turn that was lost");
            let are_reclaimed = || fixture.sessions.open_scopes().is_empty();
            eventually(SOON, "their scopes are reclaimed", are_reclaimed);
            for (block, go) in [holder, both] {
                go.send(()).unwrap();
                let ended = block.join().unwrap();
                assert!(matches!(ended, Err(Error::PinExpired(_))), "{ended:?}");
            }
        });
        fixture.is_whole();
    }
}

#[test]
fn the_turn_of_a_merged_leader_that_was_reclaimed_is_given_to_the_next_block() {
    let fixture = start_with(4, |builder| builder.max_pin_time(SLACK).max_merged(4));
    let accounts = &fixture.accounts();
    let before = fixture.stock();
    thread::scope(|scope| {
        let (wait, is_inside, go) = gate();
        let holder = scope.spawn(move || take_one(accounts, wait));
        is_inside.recv().unwrap();
        let begun = Instant::now();
        let waiting: Vec<_> = (0..4).map(|_| scope.spawn(|| take_one(accounts, |_| {}))).collect();
        waiting.into_iter().for_each(|waits| _ = waits.join().unwrap().unwrap());
        assert!(begun.elapsed() < SOON, "they waited for it");
        eventually(SOON, "its scope is reclaimed", || fixture.sessions.open_scopes().is_empty());
        go.send(()).unwrap();
        let ended = holder.join().unwrap();
        assert!(matches!(ended, Err(Error::PinExpired(_))), "{ended:?}");
    });
    assert_eq!(fixture.stock(), before - 4);
    fixture.is_whole();
}

#[test]
fn a_connection_that_is_replaced_between_blocks_is_counted_with_its_true_reason() {
    let fixture = start_with(2, |builder| builder.max_lifetime(Some(Duration::from_millis(50))));
    let accounts = fixture.accounts();
    let replaced = || fixture.sessions.status().transactional.counts.replaced;
    let ends = AtomicBool::new(false);
    let is_of_age = |(reason, _): &(CloseReason, u64)| *reason == CloseReason::Lifetime;
    thread::scope(|scope| {
        for key in ["stock", "stock", "stock", "stock", "b", "c", "d", "e"] {
            let (accounts, ends) = (&accounts, &ends);
            scope.spawn(move || {
                while !ends.load(Ordering::Relaxed) {
                    let watch = accounts.watch([key]);
                    watch.run(|_, tx| Ok(tx.incr(key, 1))).unwrap();
                }
            });
        }
        eventually(SOON, "many were replaced", || {
            replaced().iter().filter(|each| is_of_age(each)).any(|(_, count)| *count >= 20)
        });
        ends.store(true, Ordering::Relaxed);
    });
    let replaced = replaced();
    assert!(replaced.iter().all(is_of_age), "{replaced:?}");
}

#[test]
fn a_block_keeps_its_place_for_as_long_as_its_policy_leaves_time_for_an_attempt() {
    let fixture = start(4);
    let accounts = &fixture.accounts();
    let deadline = Duration::from_secs(6);
    let limited = &fixture.with(TransactionOptions::new().retry(patient().deadline(deadline)));
    let conflicts = fixture.conflicts();
    let most_of_it = || thread::sleep(deadline * 3 / 5);
    let (held, waited) = behind(&fixture, accounts, &[limited, accounts], most_of_it);
    assert_eq!(held.unwrap(), (10, 1));
    let waited: Vec<_> = waited.into_iter().map(Result::unwrap).collect();
    assert_eq!(waited, [(9, 1), (8, 1)]);
    assert_eq!(fixture.conflicts() - conflicts, 0);
    fixture.is_whole();
}

#[test]
fn a_block_waits_for_its_turn_within_the_time_for_its_connection() {
    let fixture = start(4);
    let accounts = fixture.accounts();
    let hasty = fixture.with(TransactionOptions::new().within(SHORT));
    thread::scope(|scope| {
        let (wait, is_inside, go) = gate();
        let accounts = &accounts;
        let held = scope.spawn(move || take_one(accounts, wait));
        is_inside.recv().unwrap();
        let begun = Instant::now();
        assert_eq!(take_one(&hasty, |_| {}).unwrap(), (10, 1));
        assert!(begun.elapsed() < SOON, "it waited for {:?}", begun.elapsed());
        go.send(()).unwrap();
        assert_eq!(held.join().unwrap().unwrap(), (9, 2));
    });
    fixture.is_whole();
}

#[test]
fn a_block_that_lacks_the_turn_on_one_of_its_keys_waits_for_all_of_them() {
    let fixture = start(4);
    let accounts = &fixture.accounts();
    thread::scope(|scope| {
        let ((inside, is_inside), (go, may_go)) = (channel(), channel::<()>());
        let (fixture, may_go) = (&fixture, Mutex::new(may_go));
        let both = scope.spawn(move || {
            let mut attempts = 0;
            let run = accounts.watch(["stock", "b"]).run(|read, tx| {
                attempts = read.attempt();
                if attempts == 1 {
                    fixture.server.ask::<()>(&["SET", "b", "1"]);
                } else {
                    inside.send(()).unwrap();
                    may_go.lock().unwrap().recv().unwrap();
                }
                tx.incr("stock", 1);
                Ok(tx.incr("b", 1))
            });
            run.map(|_| attempts)
        });
        is_inside.recv().unwrap();
        let one = waits(scope, || accounts.watch(["b"]).run(|_, tx| Ok(tx.incr("b", 1))));
        go.send(()).unwrap();
        assert_eq!(both.join().unwrap().unwrap(), 2);
        assert_eq!(one.join().unwrap().unwrap(), 3);
    });
    fixture.is_whole();
}

/// The counter is the number of its commits, whatever was lost between.
#[test]
fn a_hot_counter_is_right_whatever_is_cut() {
    let fixture = start(3);
    let retry = RetryPolicy::default().attempts(1000).deadline(2 * SOON);
    let plain = fixture.with(TransactionOptions::new().retry(retry));
    let handles = [plain.clone(), plain.with(exactly_once())];
    let names = ["WATCH", "GET", "EXEC", "MULTI", "SET"];
    let (certain, possible) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for worker in 0..12 {
            let (handles, fixture) = (&handles, &fixture);
            let (certain, possible) = (&certain, &possible);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(worker);
                for _ in 0..60 {
                    if random.u8(..20) == 0 {
                        let (name, at) = (names[random.usize(..5)], random.u64(..6));
                        let trigger = match random.bool() {
                            true => Trigger::InsideReplyTo(name, at),
                            false => Trigger::InsideCommandNamed(name, at * 4),
                        };
                        fixture.arm(trigger, Fault::Cut);
                    }
                    let gives_up = random.u8(..10) == 0;
                    let handle = &handles[random.usize(..2)];
                    let mut watch = handle.watch(["stock"]);
                    let read = watch.declare::<i64>(cmd("GET").arg("stock").to_owned()).unwrap();
                    let taken = watch.run(|reads, tx| {
                        let stock = reads.declared(read)?;
                        if gives_up {
                            return Err(Error::NoKeys);
                        }
                        Ok(tx.set("stock", stock - 1))
                    });
                    match taken.map_err(|error| error.applied()) {
                        Ok(()) | Err(Applied::Yes | Applied::Partly) => {
                            certain.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(Applied::Unknown) => _ = possible.fetch_add(1, Ordering::Relaxed),
                        Err(Applied::No) => {}
                    }
                }
            });
        }
    });
    let (certain, possible) = (certain.into_inner(), possible.into_inner());
    let taken = (10 - fixture.stock()) as u64;
    assert!((certain..=certain + possible).contains(&taken), "{taken}, {certain}, {possible}");
    fixture.is_whole();
}

#[test]
fn a_block_that_reached_a_slots_former_master_is_redirected_alone() {
    let cluster = Cluster::start(3, 0);
    let sessions = SessionManager::builder(cluster.url()).max_size(1).trust_window(SOON);
    let sessions = sessions.checkout_timeout(3 * SOON).response_timeout(SOON).build_side().unwrap();
    let accounts = &sessions.transactional().with(TransactionOptions::new().retry(patient()));
    let key = cluster.key_in(cluster.slots_of(0)[0], "stock");
    accounts.run(|tx| Ok(tx.set(&key, 10))).unwrap();
    let block = |meanwhile: &(dyn Fn(u32) + Send + Sync)| {
        let mut watch = accounts.watch([&key]);
        let read = watch.declare::<i64>(cmd("GET").arg(&key).to_owned()).unwrap();
        watch.run(|reads, tx| {
            let stock = reads.declared(read)?;
            meanwhile(reads.attempt());
            Ok(tx.set(&key, stock - 1))
        })
    };
    block(&|attempt| {
        if attempt == 1 {
            cluster.ask::<()>(0, &["SET", &key, "20"]);
        }
    })
    .unwrap();
    thread::scope(|scope| {
        let (wait, is_inside, go) = gate();
        let block = &block;
        let held = scope.spawn(move || block(&wait));
        is_inside.recv().unwrap();
        let next = waits(scope, move || block(&|_| {}));
        cluster.migrate(cluster.slot(&key), 1);
        go.send(()).unwrap();
        held.join().unwrap().unwrap();
        next.join().unwrap().unwrap();
    });
    assert_eq!(cluster.read::<i64>(&["GET", &key]), 17);
}

#[test]
fn no_block_begins_on_a_hot_key_after_a_close() {
    let fixture = start(2);
    let accounts = &fixture.accounts().with(TransactionOptions::new().retry(patient()));
    let (closes, late) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                // The first ones may have begun before.
                let mut after = 0;
                while take_one(accounts, |_| {}).is_ok() {
                    after += u64::from(closes.load(Ordering::SeqCst));
                    if after > 20 {
                        late.fetch_add(1, Ordering::SeqCst);
                        return;
                    }
                }
            });
        }
        eventually(SOON, "they commit", || fixture.stock() < -50);
        closes.store(true, Ordering::SeqCst);
        let begun = Instant::now();
        let closed = fixture.sessions.close(2 * SOON);
        assert_eq!(closed.scopes, 0, "none was cut off");
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    });
    assert_eq!(late.into_inner(), 0, "blocks committed after the close");
}

#[test]
fn no_block_that_begins_after_a_close_is_merged_with_one_before_it() {
    let fixture = start_with(8, |builder| unhurried(builder).max_merged(16));
    let accounts = &fixture.accounts();
    let hold = |name| fixture.arm(Trigger::BeforeReplyTo(name), Fault::HoldReplies);
    let (inside, is_inside) = channel();
    let (end, ends) = channel::<()>();
    let ran = &AtomicU64::new(0);
    thread::scope(|scope| {
        let first = scope.spawn(move || {
            take_one(accounts, move |attempt| {
                if attempt == 1 {
                    inside.send(()).unwrap();
                    ends.recv_timeout(SOON).unwrap();
                }
            })
        });
        is_inside.recv_timeout(SOON).unwrap();
        let counted = || take_one(accounts, |_| _ = ran.fetch_add(1, Ordering::SeqCst));
        let leader = waits(scope, counted);
        hold("EXEC");
        end.send(()).unwrap();
        let ran = || ran.load(Ordering::SeqCst);
        eventually(SOON, "it runs on what the first leaves", || ran() == 1);
        hold("WATCH");
        fixture.sent();
        fixture.proxy.release();
        // On a machine that stands still it has led before.
        let leads = || fixture.sent().contains(&"WATCH".to_owned()) || leader.is_finished();
        eventually(SOON, "it leads", leads);
        let closed = scope.spawn(|| fixture.sessions.close(2 * SOON));
        let is_refused = || accounts.run(|tx| Ok(tx.incr("other", 1))).is_err();
        eventually(SOON, "the close begins", is_refused);
        let late = scope.spawn(counted);
        eventually(SOON, "it runs or fails", || ran() == 2 || late.is_finished());
        fixture.proxy.disarm();
        fixture.proxy.release();
        let late = late.join().unwrap();
        assert!(matches!(late, Err(Error::Checkout(CheckoutError::Closed))), "{late:?}");
        first.join().unwrap().unwrap();
        leader.join().unwrap().unwrap();
        assert_eq!(closed.join().unwrap().scopes, 0);
    });
    assert_eq!(fixture.stock(), 8);
}

/// Two keys, of which each may be in the bucket that is entered first.
#[test]
fn a_block_on_one_of_two_hot_keys_is_not_passed_over_by_those_on_both() {
    let fixture = start(8);
    let accounts = &fixture.accounts().with(TransactionOptions::new().retry(patient()));
    let both = ["one", "other"];
    both.iter().for_each(|key| heat(accounts, &fixture.server, key));
    let (commits, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let on = |keys: &[&'static str]| {
        let mut watch = accounts.watch(keys.to_vec());
        let reads: Vec<_> = keys
            .iter()
            .map(|key| watch.declare::<Option<i64>>(cmd("GET").arg(*key).to_owned()).unwrap())
            .collect();
        let ended = watch.run(|found, tx| {
            for (key, read) in keys.iter().zip(&reads) {
                tx.set(*key, found.declared(*read)?.unwrap_or_default() + 1);
            }
            Ok(tx.incr("commits", 1))
        });
        ended.unwrap();
        commits.fetch_add(1, Ordering::SeqCst)
    };
    let passed_by: Vec<u64> = thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                while !is_over.load(Ordering::SeqCst) {
                    on(&both);
                }
            });
        }
        eventually(SOON, "they commit", || commits.load(Ordering::SeqCst) > 100);
        let passed_by = both.map(|key| {
            let before = commits.load(Ordering::SeqCst);
            on(&[key]) - before
        });
        is_over.store(true, Ordering::SeqCst);
        passed_by.to_vec()
    });
    assert!(passed_by.iter().all(|passed_by| *passed_by < 500), "{passed_by:?}");
}

#[test]
fn a_block_that_only_reads_the_key_commits_although_another_one_writes_it_often() {
    let fixture = start(4);
    let accounts = &fixture.accounts();
    let patient = &fixture.with(TransactionOptions::new().retry(patient()));
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::SeqCst) {
                take_one(patient, |_| {}).unwrap();
            }
        });
        let ended = accounts.watch(["stock"]).run(|_, tx| {
            thread::sleep(Duration::from_millis(5));
            Ok(tx.incr("other", 1))
        });
        is_over.store(true, Ordering::SeqCst);
        ended.unwrap();
    });
}

#[test]
fn a_merged_leader_that_waits_for_its_turn_keeps_the_lead() {
    let fixture = start_with(8, |builder| builder.max_merged(16));
    // A block that goes alone.
    let alone = fixture.with(TransactionOptions::new().exactly_once().retry(patient()));
    heat(&alone, &fixture.server, "stock");
    let accounts = &fixture.accounts();
    let (inside, is_inside) = channel();
    let (end, ends) = channel::<()>();
    thread::scope(|scope| {
        let alone = &alone;
        scope.spawn(move || {
            let held = alone.watch(["stock"]).run(move |_, tx| {
                inside.send(()).unwrap();
                ends.recv_timeout(SOON).unwrap();
                Ok(tx.set("stock", 8))
            });
            held.unwrap();
        });
        is_inside.recv_timeout(SOON).unwrap();
        fixture.server.ask::<()>(&["CONFIG", "RESETSTAT"]);
        let merged: Vec<_> =
            (0..8).map(|_| waits(scope, || take_one(accounts, |_| {}).unwrap())).collect();
        // Longer than the terms of all leads. No count has it.
        thread::sleep(Duration::from_secs(1));
        end.send(()).unwrap();
        drop(merged);
    });
    assert_eq!(fixture.stock(), 0);
    let stats: String = fixture.server.ask(&["INFO", "commandstats"]);
    let execs = stats.lines().find_map(|line| line.strip_prefix("cmdstat_exec:calls=")).unwrap();
    let execs: u64 = execs.split(',').next().unwrap().parse().unwrap();
    assert!(execs <= 5, "{execs} EXECs for 1 block and 8 merged ones");
}

threads_only! {
    #[test]
    fn a_scope_that_was_swapped_out_of_its_run_has_no_turn_after_it() {
        let fixture = start(4);
        let accounts = &fixture.accounts();
        let mut other = accounts.watch(["another"]).begin().unwrap();
        let swapped = accounts.watch(["stock"]).run(|read, tx| {
            std::mem::swap(read, &mut other);
            Ok(tx.incr("other", 1))
        });
        swapped.unwrap();
        let conflicts = fixture.conflicts();
        let late = || {
            let mut tx = other.multi();
            tx.incr("other", 1);
            _ = tx.commit().unwrap();
        };
        let (held, waited) = behind(&fixture, accounts, &[accounts; 3], late);
        assert_eq!(held.unwrap(), (10, 1));
        let waited: Vec<_> = waited.into_iter().map(Result::unwrap).collect();
        assert_eq!(waited, [(9, 1), (8, 1), (7, 1)]);
        assert_eq!(fixture.conflicts() - conflicts, 0);
        fixture.is_whole();
    }

    /// With merges it waits for no other block's EXEC either.
    #[test]
    fn a_thread_with_a_connection_does_not_wait_for_a_turn() {
        for most in [1, 16] {
            let fixture = start_with(1, |builder| builder.max_merged(most));
            let accounts = &fixture.accounts();
            thread::scope(|scope| {
                let ended = accounts.reading().run(|read, tx| {
                    let _: Option<i64> = read.get("stock")?;
                    // It has the turn, and waits for the connection of this thread.
                    let waits = waits(scope, || take_one(accounts, |_| {}));
                    fixture.waiting(1);
                    let inner = take_one(accounts, |_| {}).unwrap_err();
                    assert!(
                        matches!(inner, Error::Checkout(CheckoutError::WouldDeadlock { .. })),
                        "{inner:?}"
                    );
                    drop(waits);
                    Ok(tx.incr("other", 1))
                });
                ended.unwrap();
            });
            assert_eq!(fixture.stock(), 9, "the block that waited was applied");
        }
    }
}
