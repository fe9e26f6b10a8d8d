//! Plays a program on a pool of two and on the model, and compares what both hold and return.

use crate::fixture::SOON;
use std::cell::{Cell, RefCell};
use std::panic::resume_unwind;
use std::time::Duration;

use proptest::prelude::*;
use redis::Connection;
use rediscope::commands::QueueCommands;
use rediscope::{
    Begin, Outcome, RetryPolicy, SessionManager, Transaction, TransactionOptions, Transactional,
    Watched, Watching,
};

use super::model::{Model, Versions, Write};
use super::program::{End, Exit, Node, Step};
use super::steps::{
    Fault, Reported, caught, leave_closure, names, panicking, queue, queue_part, read, reported,
};
use rediscope_testing::{eventually, server::Server};

const POOL: u32 = 2;

pub(crate) type Judged = Result<(), TestCaseError>;

/// Server, managers and the look from outside, shared by all programs.
pub(crate) struct Environment<'s> {
    server: &'s Server,
    elsewhere: RefCell<Connection>,
    /// With large and with small chunks.
    managers: [RefCell<SessionManager>; 2],
    /// What the programs have seen, by [`Seen`].
    seen: [Cell<u64>; 6],
}

#[derive(Clone, Copy)]
enum Seen {
    Committed,
    Conflict,
    NotApplied,
    PartlyApplied,
    Retried,
    Forgotten,
}

fn manager(server: &Server, flush_bytes: usize) -> SessionManager {
    SessionManager::builder(server.url())
        .max_size(POOL)
        .flush_bytes(flush_bytes)
        .checkout_timeout(SOON)
        .response_timeout(SOON / 3)
        .cleanup_timeout(SOON / 3)
        .build()
        .unwrap()
}

impl<'s> Environment<'s> {
    pub(crate) fn on(server: &'s Server) -> Self {
        Self {
            server,
            elsewhere: RefCell::new(server.connection()),
            managers: [64 * 1024, 40].map(|bytes| RefCell::new(manager(server, bytes))),
            seen: Default::default(),
        }
    }

    pub(crate) fn seen(&self) -> String {
        let [committed, conflicts, not_applied, partly, retried, forgotten] =
            [0, 1, 2, 3, 4, 5].map(|at| self.seen[at].get());
        format!(
            "{committed} commits, {conflicts} conflicts, {not_applied} not applied, {partly} partly \
             applied, {retried} closures run again, {forgotten} scopes forgotten"
        )
    }

    pub(crate) fn play(&self, small_chunks: bool, steps: &[Step]) -> Judged {
        let manager = &self.managers[usize::from(small_chunks)];
        let sessions = manager.borrow().clone();
        let options =
            TransactionOptions::new().retry(RetryPolicy::default().first_backoff(Duration::ZERO));
        let mut play = Play {
            fixture: self,
            accounts: sessions.transactional().with(options),
            sessions,
            model: Model::default(),
            slots: [None, None],
            forgotten: 0,
        };
        steps.iter().try_for_each(|step| play.step(step))?;
        play.slots = [None, None];
        let (sessions, forgotten, model) = (play.sessions, play.forgotten, play.model);
        prop_assert_eq!(sessions.status().transactional.in_use, forgotten);
        if forgotten > 0 {
            // The reaper would come for them after max_pin_time; closing does not wait so long.
            prop_assert_eq!(sessions.close(Duration::ZERO).scopes, forgotten as usize);
            prop_assert_eq!(sessions.status().transactional.in_use, 0);
            *manager.borrow_mut() =
                self::manager(self.server, [64 * 1024, 40][usize::from(small_chunks)]);
        }
        self.judge(&model)
    }

    fn judge(&self, model: &Model) -> Judged {
        let elsewhere = &mut *self.elsewhere.borrow_mut();
        let (data, clients) = Model::take_from(elsewhere);
        prop_assert_eq!(&data, model.data(), "the server and the model differ");
        let in_multi = |clients: &str| clients.lines().any(|line| !line.contains(" multi=-1 "));
        if in_multi(&clients) {
            // Of one that was closed the server hears a little later.
            eventually(SOON, "no client is in MULTI", || {
                !in_multi(&self.server.ask::<String>(&["CLIENT", "LIST"]))
            });
        }
        Ok(())
    }

    fn saw(&self, what: Seen) {
        let seen = &self.seen[what as usize];
        seen.set(seen.get() + 1);
    }
}

/// An open scope.
enum Scope {
    Reading(Watching, Watch),
    Plain(Transaction, Vec<Write>),
    Watched(Transaction<Watched>, Vec<Write>, Watch),
}

/// What a scope watches, as it was then.
#[derive(Clone, Debug, Default)]
struct Watch {
    keys: Vec<usize>,
    then: Versions,
}

impl Watch {
    fn changed(&self, now: &Versions) -> bool {
        self.keys.iter().any(|key| self.then[*key] != now[*key])
    }
}

/// One program at play.
struct Play<'p> {
    fixture: &'p Environment<'p>,
    sessions: SessionManager,
    accounts: Transactional,
    model: Model,
    slots: [Option<Scope>; 2],
    forgotten: u32,
}

impl Play<'_> {
    fn step(&mut self, step: &Step) -> Judged {
        match step {
            Step::Begin { slot, immediate } if self.is_free(*slot) => {
                let accounts = if *immediate {
                    self.accounts.with(TransactionOptions::new().begin(Begin::Immediate))
                } else {
                    self.accounts.clone()
                };
                self.slots[*slot] = Some(Scope::Plain(accounts.begin().unwrap(), Vec::new()));
            }
            Step::Watch { slot, keys } if self.is_free(*slot) => {
                let watching = self.accounts.watch(names(keys)).begin().unwrap();
                let watch = Watch { keys: keys.clone(), then: self.model.versions };
                self.slots[*slot] = Some(Scope::Reading(watching, watch));
            }
            Step::Reading { slot } if self.is_free(*slot) => {
                let watching = self.accounts.reading().begin().unwrap();
                self.slots[*slot] = Some(Scope::Reading(watching, Watch::default()));
            }
            Step::Queue { slot, write } => match &mut self.slots[*slot] {
                Some(Scope::Reading(watching, _)) => {
                    let (Write::Incr(key) | Write::Set(key, _) | Write::Del(key)) = *write else {
                        return Ok(());
                    };
                    read(watching, key, &self.model)?;
                }
                Some(Scope::Plain(tx, writes)) => queue(&Node::Write(*write), tx, writes),
                Some(Scope::Watched(tx, writes, _)) => queue(&Node::Write(*write), tx, writes),
                None => {}
            },
            Step::Part { slot, part } => match &mut self.slots[*slot] {
                Some(Scope::Plain(tx, writes)) => queue_part(part, tx.savepoint(), writes),
                Some(Scope::Watched(tx, writes, _)) => queue_part(part, tx.savepoint(), writes),
                _ => {}
            },
            Step::Multi { slot } => {
                self.slots[*slot] = match self.slots[*slot].take() {
                    Some(Scope::Reading(watching, watch)) => {
                        Some(Scope::Watched(watching.multi(), Vec::new(), watch))
                    }
                    other => other,
                };
            }
            Step::Leave { slot, exit } => {
                if let Some(scope) = self.slots[*slot].take() {
                    self.leave(scope, *exit)?;
                }
            }
            Step::Run { body, end } if self.has_room() => self.run(body, *end)?,
            Step::WatchRun { keys, body, meanwhile, end } if self.has_room() => {
                self.watch_run(keys, body, *meanwhile, *end)?;
            }
            Step::Elsewhere(write) => {
                let reported = write.command().exec(&mut *self.fixture.elsewhere.borrow_mut());
                prop_assert_eq!(reported.is_ok(), self.model.apply(*write), "{:?}", reported);
            }
            Step::Pooled(write) => {
                let reported = write.command().exec(&mut self.sessions.pooled());
                prop_assert_eq!(reported.is_ok(), self.model.apply(*write), "{:?}", reported);
            }
            _ => {}
        }
        let open = self.slots.iter().flatten().count() as u32;
        prop_assert_eq!(self.sessions.status().transactional.in_use, open + self.forgotten);
        Ok(())
    }

    fn is_free(&self, slot: usize) -> bool {
        self.slots[slot].is_none() && self.has_room()
    }

    fn has_room(&self) -> bool {
        (self.slots.iter().flatten().count() as u32) + self.forgotten < POOL
    }

    fn leave(&mut self, scope: Scope, exit: Exit) -> Judged {
        match (exit, scope) {
            (Exit::Commit, Scope::Plain(tx, writes)) => {
                let reported = reported(tx.commit().map(Outcome::Committed));
                self.judge(reported, &writes, &Watch::default())?;
            }
            (Exit::Commit, Scope::Watched(tx, writes, watch)) => {
                let reported = reported(tx.commit());
                self.judge(reported, &writes, &watch)?;
            }
            // It has nothing to commit.
            (Exit::Commit | Exit::GiveUp, Scope::Reading(watching, _)) => {
                watching.abandon().unwrap();
            }
            (Exit::GiveUp, Scope::Plain(tx, _)) => tx.discard().unwrap(),
            (Exit::GiveUp, Scope::Watched(tx, ..)) => tx.discard().unwrap(),
            (Exit::Drop, scope) => drop(scope),
            (Exit::Panic, scope) => panicking(|| {
                let _scope = scope;
                resume_unwind(Box::new(()))
            }),
            (Exit::Forget, scope) => {
                std::mem::forget(scope);
                self.forgotten += 1;
                self.fixture.saw(Seen::Forgotten);
            }
        }
        Ok(())
    }

    /// What must have come of a commit; the model follows.
    fn judge(&mut self, reported: Reported, writes: &[Write], watch: &Watch) -> Judged {
        let expected = if writes.iter().any(|write| write.is_refused()) {
            // A queue that cannot be sent is not sent, whatever has changed meanwhile.
            Reported::NotApplied
        } else if watch.changed(&self.model.versions) {
            Reported::Conflict
        } else {
            match self.model.apply_all(writes) {
                0 => Reported::Committed { commands: writes.len() },
                failures => Reported::PartlyApplied { failures },
            }
        };
        self.fixture.saw(match expected {
            Reported::Committed { .. } => Seen::Committed,
            Reported::Conflict => Seen::Conflict,
            Reported::NotApplied => Seen::NotApplied,
            Reported::PartlyApplied { .. } => Seen::PartlyApplied,
        });
        prop_assert_eq!(reported, expected);
        Ok(())
    }

    fn run(&mut self, body: &[Node], end: End) -> Judged {
        let mut writes = Vec::new();
        let reported = caught(|| {
            self.accounts.run_with(|tx| {
                body.iter().for_each(|node| queue(node, tx, &mut writes));
                leave_closure(end)
            })
        });
        self.judge_closure(reported, end, &writes, &Watch::default())
    }

    fn watch_run(
        &mut self,
        keys: &[usize],
        body: &[Node],
        meanwhile: Option<Write>,
        end: End,
    ) -> Judged {
        let (mut writes, mut wrong) = (Vec::new(), Ok(()));
        let Self { model, fixture, accounts, .. } = self;
        let mut watch = Watch::default();
        let reported = caught(|| {
            let once = RetryPolicy::default().first_backoff(Duration::ZERO).attempts(2);
            accounts.watch(names(keys)).retry(once).run_with(|watching, tx| {
                watch = Watch { keys: keys.to_vec(), then: model.versions };
                wrong = wrong.clone().and(read(watching, keys[0], model));
                writes.clear();
                if watching.attempt() > 1 {
                    fixture.saw(Seen::Retried);
                }
                body.iter().for_each(|node| queue(node, tx, &mut writes));
                if let Some(write) = meanwhile.filter(|_| watching.attempt() == 1) {
                    let reported = write.command().exec(&mut *fixture.elsewhere.borrow_mut());
                    assert_eq!(reported.is_ok(), model.apply(write), "{reported:?}");
                }
                leave_closure(end)
            })
        });
        wrong?;
        // Its second attempt met no other client.
        self.judge_closure(reported, end, &writes, &watch)
    }

    fn judge_closure(
        &mut self,
        reported: Option<Result<(), Fault>>,
        end: End,
        writes: &[Write],
        watch: &Watch,
    ) -> Judged {
        let reported = match (end, reported) {
            (End::Panic, None) | (End::Err, Some(Err(Fault::Own))) => return Ok(()),
            (End::Ok, Some(Ok(()))) => Reported::Committed { commands: writes.len() },
            (End::Ok, Some(Err(Fault::Redis(error)))) => {
                prop_assert!(error.as_commit().is_some(), "returned {:?}", error);
                super::steps::reported(Err(error))
            }
            (end, reported) => {
                prop_assert!(false, "returned {:?} for {:?}", reported, end);
                return Ok(());
            }
        };
        self.judge(reported, writes, watch)
    }
}
