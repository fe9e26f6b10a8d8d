//! The handle of a real server: start, stop, freeze, kill and restart.

use super::{SHORT, SOON};
use std::net::TcpListener;
use std::path::Path;
use std::thread;

use redis::{Connection, RedisResult, Value, cmd};

use rediscope_testing::server::Server;
use rediscope_testing::unresponsive_port::UnresponsivePort;
use rediscope_testing::{connect, eventually, rss_bytes, threads, try_for, unique};

fn ping(connection: &mut Connection) -> RedisResult<String> {
    cmd("PING").query(connection)
}

#[test]
fn a_server_replies_on_both_addresses_and_leaves_nothing_behind() {
    let server = Server::start();
    assert_eq!(ping(&mut connect(&server.url())).unwrap(), "PONG");
    assert_eq!(ping(&mut connect(&server.url_db(3))).unwrap(), "PONG");
    assert_eq!(ping(&mut connect(&server.unix_url())).unwrap(), "PONG");
    eventually(SOON, "all three left", || server.clients() == 0);
    let process = format!("/proc/{}", server.pid());
    let home = server.ask::<Vec<String>>(&["CONFIG", "GET", "dir"]).remove(1);
    assert!(Path::new(&process).exists() && Path::new(&home).exists());
    drop(server);
    assert!(!Path::new(&process).exists() && !Path::new(&home).exists());
}

#[test]
fn a_fresh_server_has_no_clients_and_no_calls_but_the_harness_own() {
    let server = Server::start();
    assert_eq!((server.client_list().len(), server.clients()), (0, 0));
    let stats = server.commandstats();
    assert_eq!((stats.get("ping"), stats.get("client|list")), (None, Some(&2)));
    server.reset_stats();
    assert_eq!(server.calls("CLIENT|LIST"), 0);
    assert!(server.rss() > 0 && server.used_memory() > 0);
}

#[test]
fn two_servers_differ_and_so_do_unique_keys() {
    let (a, b) = (Server::start(), Server::start());
    assert_ne!(a.port(), b.port());
    assert_ne!(unique("k"), unique("k"));
    assert!(rss_bytes().unwrap() > 0 && threads().unwrap() > 0);
}

#[test]
fn a_server_with_a_password_starts_and_knows_its_users() {
    let server = Server::with(&["--requirepass", "x"]);
    assert!(ping(&mut connect(&server.url())).is_err());
    assert_eq!(ping(&mut server.connection()).unwrap(), "PONG");
    server.acl(&["SETUSER", "app", "on", ">secret", "~*", "+ping"]);
    let mut app = server.connection_as("app", "secret");
    assert_eq!(ping(&mut app).unwrap(), "PONG");
    assert!(cmd("GET").arg("k").query::<Value>(&mut app).is_err());
    assert_eq!(ping(&mut connect(&server.url_as("app", "secret"))).unwrap(), "PONG");
}

#[test]
#[should_panic(expected = "no-such-option")]
fn a_server_that_cannot_start_reports_the_reason() {
    Server::with(&["--no-such-option", "1"]);
}

#[test]
fn clients_are_counted_and_killed_from_outside() {
    let server = Server::start();
    let (mut a, mut b) = (server.connection(), server.connection());
    ping(&mut a).unwrap();
    let id: i64 = cmd("CLIENT").arg("ID").query(&mut a).unwrap();
    assert_eq!((server.clients(), server.calls("PING")), (2, 1));
    assert!(server.kill_client(id) && !server.kill_client(id));
    assert!(ping(&mut a).is_err());
    assert_eq!(server.clients(), 1);
    assert_eq!(server.kill_all_clients_except_me(), 1);
    assert!(ping(&mut b).is_err());
    assert_eq!(server.client_list().len(), 0);
}

#[test]
fn a_subscriber_is_listed_apart() {
    let server = Server::start();
    let mut connection = server.connection();
    let mut subscriber = connection.as_pubsub();
    subscriber.subscribe("channel").unwrap();
    assert_eq!((server.clients(), server.subscribers()), (0, 1));
}

#[test]
fn a_stopped_or_paused_server_is_silent_until_it_continues() {
    let server = Server::start();
    let mut connection = server.connection();
    connection.set_read_timeout(Some(SHORT)).unwrap();
    server.sigstop();
    assert!(ping(&mut connection).unwrap_err().is_timeout());
    server.sigcont();
    eventually(SOON, "the server replies again", || ping(&mut connection).is_ok());
    server.pause_writes(60_000);
    assert!(ping(&mut connection).is_ok());
    let set = cmd("SET").arg("k").arg("v").exec(&mut connection);
    assert!(set.unwrap_err().is_timeout());
    server.unpause();
    eventually(SOON, "the write is let through", || server.ask(&["EXISTS", "k"]));
    server.pause_clients(500);
    assert!(ping(&mut connection).unwrap_err().is_timeout());
    eventually(SOON, "the pause ends", || ping(&mut connection).is_ok());
}

#[test]
fn a_server_restarts_on_its_port_with_its_arguments_after_any_end() {
    let server = Server::with(&["--maxmemory", "7mb"]);
    let old = server.pid();
    server.restart_on_same_port();
    server.sigkill();
    assert!(!server.is_running());
    server.restart_on_same_port();
    assert_ne!(server.pid(), old);
    assert_eq!(server.info("maxmemory_human").unwrap(), "7.00M");
    assert_eq!(ping(&mut connect(&server.url())).unwrap(), "PONG");
}

#[test]
fn a_restart_waits_for_the_process_that_has_the_port() {
    let server = Server::start();
    server.sigterm_and_wait();
    let squatter = try_for(SOON, || TcpListener::bind(server.address()).ok()).unwrap();
    thread::scope(|scope| {
        let restart = scope.spawn(|| server.restart_on_same_port());
        eventually(SOON, "a start fails", || server.log().contains("Address already in use"));
        assert!(!restart.is_finished());
        drop(squatter);
    });
    assert_eq!(ping(&mut connect(&server.url())).unwrap(), "PONG");
}

#[test]
fn a_replica_starts_in_sync() {
    let primary = Server::with(&["--requirepass", "x"]);
    let replica = Server::replica_of(&primary);
    primary.ask::<()>(&["SET", "k", "v"]);
    eventually(SOON, "the write arrives", || replica.ask(&["EXISTS", "k"]));
    assert_eq!((primary.clients(), replica.clients()), (0, 0));
}

#[test]
fn a_connect_to_a_deaf_port_ends_by_timeout_only() {
    let port = UnresponsivePort::open();
    let client = redis::Client::open(port.url()).unwrap();
    assert!(client.get_connection_with_timeout(SHORT).is_err_and(|error| error.is_timeout()));
}
