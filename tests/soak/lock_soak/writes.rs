//! Writes that are fenced by a lock, which its holder loses before, during and after them.
//!
//! Each write copies, in the same transaction, the lock's holder on the server. So the data of each
//! applied write have the holder of that moment.

use crate::SOON;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rediscope::commands::QueueCommands;
use rediscope::error::Applied;
use rediscope::{Begin, Error, TransactionOptions};

use super::side::{self, BuildSide as _, Lock, LockGuard, SessionManager, Transactional};
use rediscope_testing::server::Server;

const WORKERS: u64 = 8;
const IDS: u64 = 10_000_000;
const LEASE: Duration = Duration::from_secs(60);
const CHUNK: usize = 1_000;
const DESCRIBED: usize = 20;
/// No run takes longer, on any machine.
const LONGEST: Duration = Duration::from_secs(900);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Run,
    Once,
    Grouped,
    Watch,
    Guard,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    /// No client takes it: the write has to land.
    None,
    /// Another client has it before the write begins.
    Before,
    /// Another client has it before the write is committed, and after it was begun.
    During,
    /// Another client takes it at the same time.
    Racing,
    /// Its lease ends on the server.
    Ends,
}

const FORMS: [Form; 5] = [Form::Run, Form::Once, Form::Grouped, Form::Watch, Form::Guard];
const LOSSES: [Loss; 5] = [Loss::None, Loss::Before, Loss::During, Loss::Racing, Loss::Ends];

/// One write: its holder's token, and what it returned.
#[derive(Debug)]
#[expect(dead_code, reason = "what was returned is there to be shown")]
struct Write {
    id: u64,
    token: u64,
    loss: Loss,
    reported: Applied,
    words: String,
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Found {
    seed: u64,
    wanted: u64,
    writes: u64,
    /// Of which the lock was lost, surely or as it was reported.
    lost: u64,
    /// Of these, what the server has all the same.
    pub(crate) landed: u64,
    /// By how the lock was lost: how many, and how many landed.
    losses: [[u64; 2]; LOSSES.len()],
    in_doubt: u64,
    kills: u64,
    wrong: u64,
    words: Vec<String>,
    took: Duration,
}

pub(crate) fn run(seed: u64, wanted: u64) -> Found {
    play(seed, wanted, true)
}

/// The negative control: as if there were no fence.
pub(crate) fn run_unfenced(seed: u64, wanted: u64) -> Found {
    play(seed, wanted, false)
}

fn play(seed: u64, wanted: u64, fenced: bool) -> Found {
    let begun = Instant::now();
    let server = Server::start();
    let (left, over) = (AtomicU64::new(wanted), AtomicBool::new(false));
    let mut found = Found { seed, wanted, ..Found::default() };
    let mut random = Rng::with_seed(seed);
    let writes: Vec<Write> = thread::scope(|scope| {
        let (server, left, over) = (&server, &left, &over);
        let workers: Vec<_> = (0..WORKERS)
            .map(|number| {
                let random = Rng::with_seed(random.u64(..));
                scope.spawn(move || Worker::new(server, number, random, fenced).work(left))
            })
            .collect();
        let killer = scope.spawn(move || {
            let mut kills = 0;
            while !over.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(100));
                kills += server.ask::<u64>(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
            }
            kills
        });
        let writes: Vec<_> = workers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        over.store(true, Ordering::Relaxed);
        found.kills = killer.join().expect("the killer");
        writes.into_iter().flat_map(|writes| writes.expect("a worker")).collect()
    });
    let ledger = Ledger::of(&server);
    writes.iter().for_each(|write| found.add(write, &ledger));
    found.took = begun.elapsed();
    found
}

/// A writer, and a client that takes the lock from it.
struct Worker<'a> {
    server: &'a Server,
    number: u64,
    random: Rng,
    mine: Lock,
    theirs: Lock,
    handle: Transactional,
    fenced: bool,
}

fn sessions(server: &Server) -> SessionManager {
    SessionManager::builder(server.url()).build_side().unwrap()
}

impl<'a> Worker<'a> {
    fn new(server: &'a Server, number: u64, random: Rng, fenced: bool) -> Self {
        let (mine, theirs) = (sessions(server), sessions(server));
        let name = format!("n{number}");
        Self {
            server,
            number,
            random,
            // The server keeps the fencing token of a holder that has a label.
            mine: mine.lock(&name).lease(LEASE).label("mine"),
            theirs: theirs.lock(&name).lease(LEASE).label("theirs"),
            handle: mine.transactional(),
            fenced,
        }
    }

    fn work(mut self, left: &AtomicU64) -> Vec<Write> {
        let (begun, mut writes) = (Instant::now(), Vec::new());
        let theirs = self.theirs.clone();
        let (order, orders) = mpsc::channel::<Duration>();
        let (taken, guards) = mpsc::channel::<LockGuard>();
        thread::scope(|scope| {
            scope.spawn(move || {
                for pause in orders {
                    thread::sleep(pause);
                    let _ = taken.send(take(&theirs));
                }
            });
            for nth in 0.. {
                let some_left = left.load(Ordering::Relaxed) > 0;
                if !some_left || begun.elapsed() > LONGEST {
                    break;
                }
                let write = self.write(self.number * IDS + nth, &order, &guards);
                if write.is_lost() {
                    let less = |left: u64| left.checked_sub(1);
                    let _ = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
                }
                writes.push(write);
            }
            drop(order);
        });
        writes
    }

    fn write(
        &mut self,
        id: u64,
        order: &mpsc::Sender<Duration>,
        guards: &mpsc::Receiver<LockGuard>,
    ) -> Write {
        let form = FORMS[self.random.usize(..FORMS.len())];
        let loss = LOSSES[self.random.usize(..LOSSES.len())];
        let guard = self.mine.acquire(SOON).expect("no other client wants it");
        let handle = match self.fenced {
            true => self.handle.fenced_by(&guard),
            false => self.handle.clone(),
        };
        let mut theirs = None;
        match loss {
            Loss::Before => theirs = Some(take(&self.theirs)),
            Loss::Racing => {
                order.send(Duration::from_micros(self.random.u64(..600))).expect("it listens");
            }
            Loss::None | Loss::During | Loss::Ends => {}
        }
        let (number, server, lock) = (self.number, self.server, &self.theirs);
        let reported = perform(&handle, form, number, id, &mut || match loss {
            Loss::During => drop(theirs.get_or_insert_with(|| take(lock)).fencing_token()),
            Loss::Ends => {
                let holders = format!("rediscope:lock:{{n{number}}}");
                server.ask::<i64>(&["PEXPIRE", &holders, "0"]);
            }
            _ => {}
        });
        if loss == Loss::Racing {
            theirs = guards.recv_timeout(SOON).ok();
        }
        let token = guard.fencing_token();
        drop((theirs, guard));
        let (reported, words) = match reported {
            Ok(()) => (Applied::Yes, format!("{form:?}")),
            Err(error) => (error.applied(), format!("{form:?}: {error}")),
        };
        Write { id, token, loss, reported, words }
    }
}

/// Takes the lock from any holder.
fn take(lock: &Lock) -> LockGuard {
    let until = Instant::now() + SOON;
    loop {
        // Connections are killed.
        let _ = lock.force_release();
        match lock.try_acquire() {
            Ok(Some(guard)) => return guard,
            _ => assert!(Instant::now() < until, "it is not to be had"),
        }
    }
}

fn perform(
    handle: &Transactional,
    form: Form,
    number: u64,
    id: u64,
    begun: &mut (dyn FnMut() + Send),
) -> Result<(), Error> {
    match form {
        Form::Run | Form::Once | Form::Grouped => {
            let options = TransactionOptions::new();
            let handle = match form {
                Form::Once => handle.with(options.exactly_once()),
                Form::Grouped => handle.with(options.grouped()),
                _ => handle.clone(),
            };
            handle.run(|tx| {
                begun();
                queue(tx, number, id);
                Ok(())
            })
        }
        Form::Watch => handle.watch([format!("w{number}")]).run(|_, tx| {
            begun();
            queue(tx, number, id);
            Ok(())
        }),
        Form::Guard => {
            let mut tx = handle.begin_with(TransactionOptions::new().begin(Begin::Immediate))?;
            queue(side::queue(&mut tx), number, id);
            begun();
            tx.commit().map(drop)
        }
    }
}

fn queue(tx: &mut impl QueueCommands, number: u64, id: u64) {
    let evidence = format!("evidence:{id}");
    tx.rpush("log", id);
    let mut copy = redis::cmd("COPY");
    copy.arg(format!("rediscope:lock:{{n{number}}}:info")).arg(&evidence);
    tx.queue::<i64>(copy);
    let mut persist = redis::cmd("PERSIST");
    persist.arg(&evidence);
    tx.queue::<i64>(persist);
}

/// What landed, and the holder of the lock then, by token.
struct Ledger(std::collections::HashMap<u64, (u64, Vec<String>)>);

impl Ledger {
    fn of(server: &Server) -> Self {
        let ids: Vec<u64> = server.ask(&["LRANGE", "log", "0", "-1"]);
        let mut ledger = std::collections::HashMap::new();
        let mut connection = server.connection();
        for ids in ids.chunks(CHUNK) {
            let mut pipe = redis::pipe();
            for id in ids {
                pipe.cmd("HVALS").arg(format!("evidence:{id}"));
            }
            let holders: Vec<Vec<String>> = pipe.query(&mut connection).unwrap();
            for (id, holders) in ids.iter().zip(holders) {
                let book = ledger.entry(*id).or_insert_with(|| (0, holders));
                book.0 += 1;
            }
        }
        Self(ledger)
    }
}

impl Write {
    /// Another client had it, or none, before it was committed; or so it was reported.
    fn is_lost(&self) -> bool {
        matches!(self.loss, Loss::Before | Loss::During | Loss::Ends)
            || (self.loss == Loss::Racing && self.reported == Applied::No)
    }
}

impl Found {
    fn add(&mut self, write: &Write, ledger: &Ledger) {
        self.writes += 1;
        let (times, holders) = ledger
            .0
            .get(&write.id)
            .map_or((0, &[][..]), |(times, holders)| (*times, holders.as_slice()));
        let mine = holders.iter().any(|holder| holder.starts_with(&format!("{}:", write.token)));
        self.losses[write.loss as usize][0] += 1;
        self.losses[write.loss as usize][1] += times;
        self.in_doubt += u64::from(write.reported == Applied::Unknown);
        let lost = write.is_lost();
        self.lost += u64::from(lost);
        self.landed += u64::from(lost && times > 0);
        let reported = match write.reported {
            Applied::Yes => times == 1,
            Applied::No => times == 0,
            _ => times <= 1,
        };
        let right = reported && (times == 0 || mine) && !(lost && times > 0);
        if !right {
            self.wrong += 1;
            if self.words.len() < DESCRIBED {
                self.words.push(format!("landed {times} times, held by {holders:?}: {write:?}"));
            }
        }
    }

    /// What must be true and is not.
    pub(crate) fn broken(&self) -> Vec<String> {
        let mut broken = self.words.clone();
        let mut must = |holds: bool, what: String| {
            if !holds {
                broken.push(what);
            }
        };
        must(self.wrong == 0, format!("{} wrong", self.wrong));
        must(self.lost >= self.wanted, format!("only {} lost locks", self.lost));
        let [none, .., racing, _] = self.losses;
        must(
            10 * none[1] > 8 * none[0],
            format!("{} of {} were held and landed", none[1], none[0]),
        );
        must(racing[1] > 0 && racing[1] < racing[0], format!("racing: {racing:?}"));
        must(self.kills > 0, "no connection was killed".to_owned());
        broken
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| writes behind a lock | {}, seed {} |", self.writes, self.seed)?;
        writeln!(f, "| --- | ---: |")?;
        for (loss, [all, landed]) in LOSSES.iter().zip(self.losses) {
            let what = match loss {
                Loss::None => "that was held, and landed",
                Loss::Before => "that another one had before, and landed",
                Loss::During => "that another one took before the commit, and landed",
                Loss::Racing => "that another one took at the same time, and landed",
                Loss::Ends => "whose lease had ended, and landed",
            };
            writeln!(f, "| {what} | {all}, {landed} |")?;
        }
        writeln!(f, "| in doubt | {} |", self.in_doubt)?;
        writeln!(f, "| connections killed | {} |", self.kills)?;
        writeln!(f, "| fenced by a lost lock, of these landed | {}, {} |", self.lost, self.landed)?;
        writeln!(f, "| wrong | {} |", self.wrong)?;
        writeln!(f, "| seconds | {:.1} |", self.took.as_secs_f64())
    }
}
