//! First programs compile at the first try: one `#[from]` or none is enough for `?` on every call.
//!
//! Guarantee: none

use std::time::Duration;

use rediscope::{CommitError, Error, SessionManager, Transactional, prelude::*};
use rediscope_testing::server::Server;

const WAIT: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
enum BankError {
    #[error("alice has only {0}")]
    Broke(i64),
    #[error(transparent)]
    Redis(#[from] Error),
}

fn transfer(sessions: &SessionManager) -> Result<i64, BankError> {
    let accounts = sessions.transactional();
    let guard = sessions.lock("bank").acquire(WAIT)?;
    guard.ensure_held()?;
    let mut tx = accounts.begin()?;
    let bob = tx.incr("bob", 30);
    tx.check()?;
    let replies = tx.commit()?;
    let bob: i64 = replies.get(bob)?;
    accounts.watch(["alice"]).run_with(|read, tx| {
        let alice: i64 = read.get("alice")?;
        if alice < 30 {
            return Err(BankError::Broke(alice));
        }
        Ok(tx.decr("alice", 30))
    })?;
    accounts.begin()?.discard()?;
    guard.release()?;
    Ok(bob)
}

#[test]
fn a_program_with_one_error_of_its_own() {
    let server = Server::start();
    let sessions = SessionManager::connect(server.url()).unwrap();
    let _: () = sessions.pooled().set("alice", 50).unwrap();
    assert_eq!(transfer(&sessions).unwrap(), 30);
    let broke = transfer(&sessions).unwrap_err();
    assert!(matches!(broke, BankError::Broke(20)), "{broke:?}");
    let _: () = sessions.pooled().set("bob", "text").unwrap();
    match transfer(&sessions).unwrap_err() {
        BankError::Redis(Error::Commit(CommitError::PartlyApplied { replies, .. })) => {
            assert_eq!(replies.failures(), 1);
        }
        other => panic!("{other:?}"),
    }
}

fn count(url: &str) -> anyhow::Result<i64> {
    let sessions = SessionManager::connect(url)?;
    let visits = sessions.transactional();
    let permit = sessions.semaphore("visits", 2).acquire(WAIT)?;
    let mut tx = visits.begin()?;
    let hits = tx.incr("hits", 1);
    let hits = tx.commit()?.get(hits)?;
    anyhow::ensure!(hits == log(&visits)?, "every hit is in the log");
    permit.release()?;
    Ok(hits)
}

fn log(visits: &Transactional) -> anyhow::Result<i64> {
    visits.run_with(|tx| {
        let step: i64 = "1".parse()?;
        Ok(tx.incr("log", step))
    })
}

#[test]
fn a_program_with_anyhow() {
    let server = Server::start();
    assert_eq!(count(&server.url()).unwrap(), 1);
    let _: () = SessionManager::connect(server.url()).unwrap().pooled().set("hits", "x").unwrap();
    let error = count(&server.url()).unwrap_err();
    let error = error.downcast_ref::<Error>().unwrap();
    assert_eq!((error.code(), error.replies().unwrap().len()), (Some("ERR"), 1));
    assert!(error.as_commit().is_some() && error.as_in_doubt().is_none());
    assert!(error.as_checkout().is_none() && error.as_config().is_none());
    assert!(error.as_lock().is_none() && error.as_reply().is_none());
}

/// A caller passes errors on by value, and clippy warns of larger ones.
#[test]
fn an_error_is_small() {
    assert!(size_of::<Error>() <= 128, "{}", size_of::<Error>());
}
