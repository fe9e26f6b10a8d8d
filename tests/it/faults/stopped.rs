//! A process that is stopped and continued in the middle of a call: the system interrupts its reads and writes,
//! and the connection stays usable.
//!
//! Guarantee: deadlines

use crate::fixture::SOON;
use crate::side::BuildSide as _;
use std::process::{Child, Command, Stdio};

use crate::side::SessionManager;
use rediscope::prelude::*;

use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Proxy, Trigger};
use rediscope_testing::server::Server;

const NAME: &str = "faults::stopped::a_process_that_was_stopped_gets_the_true_outcome";
/// Variable with the server's address, for the other process.
const SERVER: &str = "REDISCOPE_STOPPED_SERVER";

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(sent.success(), "{name}");
}

/// The state of its threads, as the system has it.
fn is_stopped(child: &Child) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    status.lines().any(|line| line.starts_with("State:") && line.contains('T'))
}

/// Is itself the process that is stopped where it finds a server.
#[test]
#[cfg(target_os = "linux")]
fn a_process_that_was_stopped_gets_the_true_outcome() {
    if let Ok(server) = std::env::var(SERVER) {
        let sessions = SessionManager::builder(server).response_timeout(SOON);
        let sessions = sessions.checkout_timeout(3 * SOON).build_side().unwrap();
        let reported = sessions.transactional().run(|tx| Ok(tx.incr("n", 1)));
        println!("returned: {reported:?}");
        return;
    }
    let server = Server::start();
    let proxy = Proxy::to(&server);
    for n in 1..=3 {
        proxy.arm((Trigger::BeforeReplyTo("EXEC"), Fault::HoldReplies));
        let fired = proxy.fired();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture"])
            .env(SERVER, proxy.url())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        eventually(SOON, "the answer is held", || proxy.fired() > fired);
        for _ in 0..3 {
            signal(&child, "-STOP");
            eventually(SOON, "it stands still", || is_stopped(&child));
            signal(&child, "-CONT");
            eventually(SOON, "it goes on", || !is_stopped(&child));
        }
        proxy.disarm();
        proxy.release();
        let output = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        assert!(output.contains(&format!("returned: Ok({n})")), "{output}");
    }
}
