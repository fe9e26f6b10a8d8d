//! `PinExpired`: the scope was unused for `max_pin_time`, and its connection was reclaimed.
//!
//! Guarantee: pin-expired

use crate::fixture::{LONG, SOON};
use crate::side::BuildSide as _;
use std::panic::Location;
use std::time::Duration;

use crate::side::SessionManager;
use rediscope::Error;
use rediscope::error::{Applied, PinExpired};
use rediscope::prelude::*;

use crate::fixture::proxied::{
    Proxied, assert_outcome, client_ids, exists, get, no_connection_is_in_multi, one_is_gone,
    pool_is_whole,
};
use rediscope_testing::eventually;

/// Long enough that a busy machine does not make a live scope look dead.
const LIMIT: Duration = Duration::from_millis(700);

/// One open connection; scopes are reclaimed after [`LIMIT`].
fn hasty(fixture: &Proxied) -> SessionManager {
    let builder = fixture.builder().trust_window(LONG).max_pin_time(LIMIT).flush_bytes(1);
    // Making it warm is a scope too.
    let sessions = builder.build_side().unwrap();
    assert_eq!(sessions.transactional().run(|tx| Ok(tx.ping())).unwrap(), "PONG");
    crate::side::open_lanes(&sessions, "nothing");
    fixture.journal();
    sessions
}

/// The scope is reclaimed, its connection is replaced, and its capacity is there again.
#[track_caller]
fn is_reclaimed(fixture: &Proxied, sessions: &SessionManager) {
    let before = client_ids(&fixture.server);
    eventually(SOON, "the scope is taken back", || sessions.status().transactional.in_use == 0);
    pool_is_whole(sessions, &fixture.server);
    one_is_gone(&fixture.server, &before);
    no_connection_is_in_multi(&fixture.server);
}

#[track_caller]
fn expired(reported: PinExpired, line: u32) {
    assert_eq!((reported.begun_at.file(), reported.begun_at.line()), (file!(), line));
    assert_eq!(reported.limit, LIMIT);
    assert!(reported.held >= LIMIT);
    let place: &Location<'_> = reported.begun_at;
    assert!(reported.to_string().contains(&place.to_string()), "{reported}");
}

#[test]
fn a_late_commit_fails_with_the_place_where_its_scope_began_and_applies_nothing() {
    let fixture = Proxied::start();
    let sessions = hasty(&fixture);
    let (mut tx, line) = (sessions.transactional().begin().unwrap(), line!());
    tx.set("key", 1);
    crate::side::send_ahead(&mut tx);
    assert_eq!(fixture.journal(), ["MULTI", "SET"], "the server knows of it already");
    is_reclaimed(&fixture, &sessions);
    tx.set("key", 2);
    crate::side::send_ahead(&mut tx);
    match tx.check().unwrap_err() {
        Error::PinExpired(reported) => expired(reported, line),
        error => panic!("{error:?}"),
    }
    let error = tx.commit().unwrap_err();
    assert_outcome(&error, Applied::No, false);
    match error {
        Error::PinExpired(reported) => expired(reported, line),
        error => panic!("{error:?}"),
    }
    assert!(!exists(&fixture.server, "key"));
    pool_is_whole(&sessions, &fixture.server);
}

#[test]
fn every_late_use_of_a_watching_scope_fails() {
    let fixture = Proxied::start();
    let sessions = hasty(&fixture);
    let accounts = sessions.transactional();
    let (mut watching, line) = (accounts.watch(["key"]).begin().unwrap(), line!());
    is_reclaimed(&fixture, &sessions);
    let error = watching.get::<_, Option<String>>("key").unwrap_err();
    assert_eq!((error.applied(), error.is_retryable()), (Applied::No, false));
    match error {
        Error::PinExpired(reported) => expired(reported, line),
        error => panic!("{error:?}"),
    }
    let mut tx = watching.multi();
    tx.set("key", 1);
    let error = tx.commit().unwrap_err();
    assert_outcome(&error, Applied::No, false);
    assert!(matches!(error, Error::PinExpired(_)), "{error:?}");
    assert!(!exists(&fixture.server, "key"));
    pool_is_whole(&sessions, &fixture.server);
}

#[test]
fn late_discards_and_drops_disturb_no_other_call() {
    let fixture = Proxied::start();
    let sessions = hasty(&fixture);
    let accounts = sessions.transactional();
    let mut discarded = accounts.begin().unwrap();
    discarded.set("key", 1);
    is_reclaimed(&fixture, &sessions);
    let mut next = accounts.begin().unwrap();
    let reported = discarded.discard();
    next.set("next", 1);
    next.commit().unwrap();
    assert!(matches!(reported, Err(Error::PinExpired(_))), "{reported:?}");

    let mut dropped = accounts.begin().unwrap();
    dropped.set("key", 1);
    is_reclaimed(&fixture, &sessions);
    let mut next = accounts.begin().unwrap();
    drop(dropped);
    next.set("next", 2);
    next.commit().unwrap();
    assert_eq!(
        (get(&fixture.server, "next").unwrap(), exists(&fixture.server, "key")),
        ("2".into(), false)
    );
}
