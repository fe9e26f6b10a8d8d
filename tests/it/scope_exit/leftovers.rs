//! What a caller could leave on a connection in other ways than by ending a scope.
//!
//! Guarantee: clean-connections

use crate::fixture::SOON;
use crate::side::BuildSide as _;
use std::time::Duration;

use crate::side::SessionManager;
use redis::{Commands, ConnectionLike};
use rediscope::{CommitError, Error, Outcome, RetryPolicy, prelude::*};

use rediscope_testing::proxy::{Fault, Proxy, Script, Trigger};
use rediscope_testing::server::Server;
use rediscope_testing::unique;

fn pool_of_one(url: String) -> SessionManager {
    SessionManager::builder(url)
        .max_size(1)
        .checkout_timeout(SOON)
        .trust_window(SOON)
        .flush_bytes(64)
        .build_side()
        .unwrap()
}

crate::side::threads_only! {
    #[test]
    fn a_request_packed_by_hand_leaves_no_reply_for_the_next_caller() {
        let server = Server::start();
        let sessions = pool_of_one(server.url());
        let mut db = sessions.pooled();
        let set = redis::cmd("SET").arg("a").arg("mine").get_packed_command();
        let get = redis::cmd("GET").arg("a").get_packed_command();
        let both = [set, get].concat();
        // Two commands are sent, one reply is awaited.
        let refusals = [
            db.req_packed_command(&both).map(drop),
            db.req_packed_commands(&both, 0, 1).map(drop),
            db.req_packed_commands(&both, 1, 2).map(drop),
            db.req_packed_command(b"").map(drop),
        ];
        let echo = |text: &str| redis::cmd("ECHO").arg(text).query::<String>(&mut sessions.pooled());
        assert_eq!(echo("next").unwrap(), "next");
        for reported in refusals {
            let error = Error::from(reported.unwrap_err());
            assert!(matches!(error, Error::Refused { .. }), "{error:?}");
        }
        assert!(!Commands::exists::<_, bool>(&mut server.connection(), "a").unwrap());
        assert_eq!(db.req_packed_commands(&both, 1, 1).unwrap().len(), 1);
        assert_eq!(echo("next").unwrap(), "next");
    }
}

#[test]
fn a_script_debugger_is_not_left_running_for_the_next_caller() {
    let server = Server::start();
    let sessions = pool_of_one(server.url());
    let debug = redis::cmd("script").arg("Debug").arg("YES").take();
    let reported = debug.query::<()>(&mut sessions.pooled()).map_err(Error::from);
    assert!(matches!(reported, Err(Error::Refused { .. })), "{reported:?}");
    let reported = sessions.transactional().run(|tx| Ok(tx.queue::<()>(debug)));
    assert!(
        matches!(&reported, Err(Error::Commit(error)) if matches!(error, CommitError::NotSent { .. }))
    );
    let load = redis::cmd("SCRIPT").arg("LOAD").arg("return 1").take();
    assert_eq!(load.query::<String>(&mut sessions.pooled()).unwrap().len(), 40);
}

#[test]
fn a_watch_that_lost_its_connection_commits_nothing_not_even_an_empty_transaction() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let accounts = pool_of_one(proxy.url()).transactional();
    let key = unique("watched");
    let mut watching = accounts.watch([&key]).begin().unwrap();
    let before: Option<i64> = watching.get(&key).unwrap();
    proxy.cut_all();
    assert!(watching.get::<_, Option<i64>>(&key).is_err());
    let _: i64 = server.connection().incr(&key, 1).unwrap();
    // `Committed` would say that nothing changed between the reads.
    let reported = watching.multi().commit();
    assert!(
        matches!(reported, Err(Error::Commit(CommitError::NotSent { .. }))),
        "{before:?}, {reported:?}"
    );
    // And where the connection lives, nothing is committed in earnest.
    let watching = accounts.watch([&key]).begin().unwrap();
    assert!(matches!(watching.multi().commit().unwrap(), Outcome::Committed(_)));
    let watching = accounts.watch([&key]).begin().unwrap();
    let _: i64 = server.connection().incr(&key, 1).unwrap();
    assert!(watching.multi().commit().unwrap().is_conflict());
}

crate::side::threads_only! {
    #[test]
    fn a_large_block_that_lost_its_first_chunk_fails_at_once() {
        let server = Server::start();
        let proxy = Proxy::to(&server);
        let sessions = pool_of_one(proxy.url());
        // A connection is there, and trusted.
        sessions.transactional().run(|tx| Ok(tx.ping())).unwrap();
        let cut = Script::new().on(Trigger::BeforeReplyTo("SET"), Fault::Cut).once();
        proxy.arm(cut);
        let key = unique("chunk");
        let patient = RetryPolicy::default().first_backoff(Duration::from_millis(1)).attempts(10);
        let accounts = sessions.transactional();
        let accounts = accounts.with(rediscope::TransactionOptions::new().retry(patient));
        let reported = accounts.run(|tx| {
            tx.set(&key, vec![b'x'; 100]);
            tx.incr("behind", 1);
            Ok(())
        });
        let Err(Error::Commit(error)) = &reported else { panic!("{reported:?}") };
        assert!(matches!(error, CommitError::NotSent { .. }), "{error:?}");
        assert_eq!(sessions.status().transactional.counts.retries, 0, "it cannot be sent again");
        assert!(!Commands::exists::<_, bool>(&mut server.connection(), &key).unwrap());
        assert!(!Commands::exists::<_, bool>(&mut server.connection(), "behind").unwrap());
    }
}
