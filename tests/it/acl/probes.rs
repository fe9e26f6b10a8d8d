//! What a user with the rights of a line in the documents can do.

use super::fixture::EFFECT_WAIT;
use crate::fixture::{LONG, SOON};
use crate::side::SessionManager;
use std::thread;
use std::time::Duration;

use rediscope::error::ReplyError;
use rediscope::redis::{self, Commands};
use rediscope::{Condition, Error, TransactionOptions, prelude::*};

use super::fixture::RestrictedServer;
use super::forms::{Form, N};
use rediscope_testing::proxy::{Fault, Proxy, Script, Trigger};
use rediscope_testing::{eventually, try_for};

/// What does not work, in a few words.
pub(crate) type Probe = fn(&RestrictedServer) -> Result<(), String>;

pub(crate) fn of(letter: &str) -> &'static [Probe] {
    match letter {
        "a" => &[reads_and_writes],
        "b" => &[another_database],
        "c" => &[transactions],
        "d" => &[watching, abandoning],
        "e" => &[once, in_turn, a_doubt],
        "f" => &[once_as],
        "g" => &[replicas],
        "h" => &[locks, a_counter_ahead, queues, forcing, listening],
        "i" => &[fenced],
        letter => panic!("no line {letter}"),
    }
}

fn as_text(result: Result<(), Error>) -> Result<(), String> {
    result.map_err(|error| error.to_string())
}

fn all(sessions: &SessionManager, forms: &[Form]) -> Result<(), String> {
    forms.iter().try_for_each(|form| as_text(form.play(sessions)))
}

fn that(is: bool, what: &str) -> Result<(), String> {
    if is { Ok(()) } else { Err(what.to_owned()) }
}

fn reads_and_writes(fixture: &RestrictedServer) -> Result<(), String> {
    let sessions = fixture.sessions(Duration::ZERO);
    all(&sessions, &[Form::Single, Form::Pipeline])?;
    let read: redis::RedisResult<i64> = sessions.pooled().get(N);
    that(read == Ok(2), "GET")
}

fn another_database(fixture: &RestrictedServer) -> Result<(), String> {
    all(&fixture.sessions_at("2", LONG), &[Form::Single])
}

fn transactions(fixture: &RestrictedServer) -> Result<(), String> {
    for trust in [Duration::ZERO, LONG] {
        let sessions = fixture.sessions(trust);
        all(&sessions, &[Form::Guard, Form::Immediate, Form::Run, Form::Grouped])?;
        let immediate = TransactionOptions::new().begin(rediscope::Begin::Immediate);
        as_text(sessions.transactional().begin_with(immediate).and_then(|tx| tx.discard()))?;
    }
    Ok(())
}

fn watching(fixture: &RestrictedServer) -> Result<(), String> {
    let sessions = fixture.sessions(LONG);
    all(&sessions, &[Form::Watch])?;
    let required = sessions.transactional().require(Condition::equals(N, 1));
    as_text(required.run(|tx| Ok(tx.incr(N, 1))).map(drop))
}

fn abandoning(fixture: &RestrictedServer) -> Result<(), String> {
    let sessions = fixture.sessions(LONG);
    as_text(sessions.transactional().watch([N]).begin().and_then(|watching| watching.abandon()))
}

fn once(fixture: &RestrictedServer) -> Result<(), String> {
    let sessions = fixture.sessions(LONG);
    all(&sessions, &[Form::Once, Form::Once])
}

/// Plain transactions and exactly-once ones on one connection.
fn in_turn(fixture: &RestrictedServer) -> Result<(), String> {
    let sessions = fixture.sessions(LONG);
    all(&sessions, &[Form::Once, Form::Run, Form::Once])?;
    let counts = sessions.status().transactional.counts;
    that(counts.all_replaced() == 0, "a connection was replaced")
}

fn a_doubt(fixture: &RestrictedServer) -> Result<(), String> {
    let proxy = Proxy::to(&fixture.server);
    let sessions =
        SessionManager::connect(format!("redis://app:secret@{}/", proxy.address())).unwrap();
    all(&sessions, &[Form::Once])?;
    proxy.arm(Script::from((Trigger::BeforeReplyTo("EXEC"), Fault::Cut)).once());
    match Form::Once.play(&sessions) {
        Err(Error::Reply(ReplyError::Lost)) => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

fn once_as(fixture: &RestrictedServer) -> Result<(), String> {
    all(&fixture.sessions(LONG), &[Form::OnceAs])
}

fn replicas(fixture: &RestrictedServer) -> Result<(), String> {
    all(&fixture.sessions(LONG), &[Form::Replicas])
}

/// Acquired in vain, acquired, extended, checked, released; each kind.
fn locks(fixture: &RestrictedServer) -> Result<(), String> {
    let sessions = fixture.sessions(LONG);
    all(&sessions, &[Form::Lock, Form::RwLock, Form::Semaphore])?;
    let lock = sessions.lock("x").label("holder").fixed_lease();
    let error = |error: rediscope::Error| error.to_string();
    // Holders that are gone: the next caller removes them, or their keys are gone before.
    let lease = Duration::from_millis(20);
    let gone = lock.clone().lease(lease).acquire(SOON).map_err(error)?;
    let shared = sessions.semaphore("x", 2).fixed_lease();
    let beside = shared.acquire(SOON).map_err(error)?;
    let gone_too = shared.clone().lease(lease).acquire(SOON).map_err(error)?;
    shared.acquire(SOON).map_err(error)?.release().map_err(error)?;
    beside.release().map_err(error)?;
    let guard = lock.acquire(SOON).map_err(error)?;
    that(lock.try_acquire().map_err(error)?.is_none(), "held twice")?;
    guard.ensure_held().map_err(error)?;
    that(lock.holder().map_err(error)?.is_some(), "it has a holder")?;
    drop((gone, gone_too));
    guard.release().map_err(error)
}

/// The server's clock was set back, or another one's was ahead.
fn a_counter_ahead(fixture: &RestrictedServer) -> Result<(), String> {
    fixture.server.ask::<()>(&["SET", "rediscope:fence", "9000000000000000"]);
    all(&fixture.sessions(LONG), &[Form::Lock])
}

fn queues(fixture: &RestrictedServer) -> Result<(), String> {
    let (sessions, other) = (fixture.sessions(LONG), fixture.sessions(LONG));
    let error = |error: rediscope::Error| error.to_string();
    let guard = sessions.lock("f").fair().acquire(SOON).map_err(error)?;
    let late = other.lock("f").fair();
    let waiting = thread::spawn(move || late.acquire(EFFECT_WAIT));
    let queued = try_for(EFFECT_WAIT, || {
        let waiting = fixture.server.ask::<i64>(&["ZCARD", "rediscope:lock:{f}:queue"]) == 1;
        waiting.then_some(())
    });
    let released = guard.release().map_err(error);
    let next = waiting.join().unwrap().map_err(error);
    that(queued.is_some(), "no waiter stands in line")?;
    released?;
    next?.release().map_err(error)
}

fn forcing(fixture: &RestrictedServer) -> Result<(), String> {
    let sessions = fixture.sessions(LONG);
    let lock = sessions.lock("x");
    let error = |error: rediscope::Error| error.to_string();
    let _held = lock.clone().fixed_lease().acquire(SOON).map_err(error)?;
    that(lock.force_release().map_err(error)?, "it had no holder")
}

/// Connections that hear of releases of the lock `x`.
fn hear_of_it(fixture: &RestrictedServer) -> i64 {
    let counts: Vec<redis::Value> =
        fixture.server.ask(&["PUBSUB", "NUMSUB", "rediscope:lock:{x}:wake"]);
    redis::from_redis_value(counts[1].clone()).unwrap()
}

/// Two waiters, two channels, one connection that hears of both, and goes on without the first.
fn listening(fixture: &RestrictedServer) -> Result<(), String> {
    // Those of a test before.
    eventually(SOON, "no connection listens", || fixture.server.subscribers() == 0);
    let (sessions, other) = (fixture.sessions(LONG), fixture.sessions(LONG));
    let error = |error: rediscope::Error| error.to_string();
    let guards = ["x", "y"].map(|name| sessions.lock(name).acquire(SOON));
    let [first, second] = guards.map(|guard| guard.map_err(error));
    let (first, second) = (first?, second?);
    let waiters = ["x", "y"].map(|name| {
        let lock = other.lock(name);
        thread::spawn(move || lock.acquire(EFFECT_WAIT).map(drop))
    });
    let both = try_for(EFFECT_WAIT, || (other.status().locks.subscriptions == 2).then_some(()));
    let listener = || {
        let list = fixture.server.client_list();
        let mut listening = list.iter().filter(|client| client["flags"].contains('P'));
        listening.next().map(|client| client["id"].clone())
    };
    let before = listener();
    let released = first.release().map_err(error);
    let dropped =
        both.and_then(|()| try_for(EFFECT_WAIT, || (hear_of_it(fixture) == 0).then(listener)));
    let ended = second.release().map_err(error);
    for waiter in waiters {
        waiter.join().unwrap().map_err(error)?;
    }
    released.and(ended)?;
    that(before.is_some() && dropped == Some(before), "it does not hear of releases")
}

fn fenced(fixture: &RestrictedServer) -> Result<(), String> {
    let sessions = fixture.sessions(LONG);
    all(&sessions, &[Form::Fenced])?;
    let guard = sessions.lock("x").acquire(SOON).map_err(|error| error.to_string())?;
    let watching = sessions.transactional().fenced_by(&guard).watch([N]).begin();
    as_text(watching.and_then(|watching| watching.abandon()))
}
