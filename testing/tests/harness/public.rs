//! The crate as its users have it: servers that do not start, and the faults on all connections.

use super::SOON;
use std::error::Error as _;
use std::process::Command;
use std::time::Duration;

use redis::{Connection, ErrorKind, RedisResult, ServerErrorKind, cmd};

use rediscope_testing::process::rerun;
use rediscope_testing::{
    Fault, Faults, StartError, TestServer, Trigger, connect, eventually, own_process,
};

fn incr(connection: &mut Connection) -> RedisResult<i64> {
    cmd("INCR").arg("n").query(connection)
}

/// What is true, past the proxy.
fn number(server: &TestServer) -> i64 {
    cmd("GET").arg("n").query::<Option<i64>>(&mut connect(&server.url())).unwrap().unwrap_or(0)
}

fn both() -> (TestServer, Faults) {
    let server = TestServer::start().unwrap();
    let faults = Faults::before(&server).unwrap();
    (server, faults)
}

#[test]
fn a_program_that_is_not_here_is_an_error_that_names_what_to_install() {
    let error = TestServer::of("/nowhere/redis-server", &[]).unwrap_err();
    assert!(matches!(error, StartError::NotInstalled { .. }), "{error:?}");
    let text = error.to_string();
    for part in ["/nowhere/redis-server", "apt-get install redis-server", "brew", "REDIS_SERVER"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(error.source().is_some() && !text.contains("os error"), "{text}");
}

#[test]
fn the_program_is_that_of_the_variable_or_else_the_one_on_the_path() {
    own_process!();
    const NOWHERE: &str = "/nowhere/of-the-variable";
    match std::env::var("REDIS_SERVER").ok().as_deref() {
        Some(NOWHERE) => {
            let error = TestServer::start().unwrap_err();
            assert!(error.to_string().contains(NOWHERE), "{error}");
        }
        Some("") => {
            let error = TestServer::start().unwrap_err();
            assert!(error.to_string().starts_with("cannot run redis-server: "), "{error}");
        }
        _ => {
            let succeeds = |command: &mut Command| assert!(command.status().unwrap().success());
            succeeds(rerun().env("REDIS_SERVER", NOWHERE));
            succeeds(rerun().env("REDIS_SERVER", "").env("PATH", "/nowhere"));
        }
    }
}

#[test]
fn an_argument_that_the_server_refuses_is_in_the_error() {
    let error = TestServer::with(&["--no-such-setting", "1"]).unwrap_err();
    assert!(matches!(error, StartError::Ended { .. }), "{error:?}");
    assert!(error.to_string().contains("no-such-setting"), "{error}");
}

#[test]
fn a_server_is_paused_killed_and_restarted_empty() {
    let server = TestServer::start().unwrap();
    let mut connection = connect(&server.url());
    assert_eq!(incr(&mut connection).unwrap(), 1);
    server.pause();
    connection.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(incr(&mut connection).unwrap_err().is_timeout());
    server.resume();
    eventually(SOON, "the paused request was executed", || number(&server) == 2);
    server.kill();
    assert!(!server.is_running());
    server.restart().unwrap();
    assert_eq!(number(&server), 0);
    server.stop();
    assert!(!server.is_running());
}

#[test]
fn a_lost_reply_is_that_of_a_command_that_was_executed_and_a_cut_before_is_not() {
    let (server, faults) = both();
    let mut open = connect(&faults.url());
    faults.lose_reply("incr");
    assert!(incr(&mut open).unwrap_err().is_connection_dropped());
    assert_eq!((number(&server), faults.fired()), (1, 1));
    let mut next = connect(&faults.url());
    assert_eq!(incr(&mut next).unwrap(), 2, "it happens once");
    faults.cut_before("INCR");
    assert!(incr(&mut next).unwrap_err().is_connection_dropped());
    assert_eq!((number(&server), faults.fired()), (2, 2));
    faults.cut_after("INCR");
    assert!(incr(&mut connect(&faults.url())).unwrap_err().is_connection_dropped());
    eventually(SOON, "it was sent", || number(&server) == 3);
    assert_eq!(faults.fired(), 3);
}

#[test]
fn a_fault_fires_once_over_all_connections_and_the_last_one_armed_counts() {
    let (server, faults) = both();
    let mut connections = [(); 3].map(|()| connect(&faults.url()));
    faults.cut_after_bytes(1);
    faults.cut_before("INCR");
    let results = connections.each_mut().map(|connection| incr(connection).is_ok());
    assert_eq!(results, [false, true, true]);
    assert_eq!((number(&server), faults.fired()), (2, 1));
}

#[test]
fn what_is_held_and_a_black_hole_pass_on_after_the_release() {
    let (server, faults) = both();
    let mut connection = connect(&faults.url());
    connection.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    faults.hold_reply("INCR");
    assert!(incr(&mut connection).unwrap_err().is_timeout());
    assert_eq!(number(&server), 1);
    faults.release();

    let mut connection = connect(&faults.url());
    connection.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    faults.black_hole();
    assert!(incr(&mut connection).unwrap_err().is_timeout());
    let client = redis::Client::open(faults.url()).unwrap();
    let opened = client.get_connection_with_timeout(Duration::from_millis(50));
    assert!(opened.is_err(), "new connections too");
    assert_eq!(number(&server), 1);
    faults.release();
    eventually(SOON, "what was held is executed", || number(&server) == 2);
    assert_eq!(incr(&mut connect(&faults.url())).unwrap(), 3);
}

#[test]
fn all_connections_are_cut_reset_and_refused() {
    let (server, faults) = both();
    let mut connection = connect(&faults.url_db(1));
    assert_eq!(faults.connections(), 1);
    faults.cut();
    assert!(incr(&mut connection).unwrap_err().is_connection_dropped());
    let mut connection = connect(&faults.url());
    faults.reset();
    assert!(incr(&mut connection).unwrap_err().is_io_error());
    faults.refuse_new(true);
    assert!(redis::Client::open(faults.url()).unwrap().get_connection().is_err());
    faults.refuse_new(false);
    let mut connection = connect(&faults.url());
    faults.arm(Trigger::BeforeCommandNamed("INCR"), Fault::Refuse("-LOADING soon\r\n"));
    let error = incr(&mut connection).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Server(ServerErrorKind::BusyLoading), "{error}");
    assert_eq!(number(&server), 0);
}
