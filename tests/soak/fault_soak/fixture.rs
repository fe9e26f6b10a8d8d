//! The server, the proxy in front of it, and the session manager that is put to the test.
//!
//! The server writes an append-only file and syncs it at every write (`appendonly yes`,
//! `appendfsync always`): what has a reply survives SIGKILL, and so does the ledger. If the
//! machine has a file system in memory, the file is there. It survives a killed process, and a slow
//! disk would be a fault that is not counted.

use std::path::Path;
use std::time::Duration;

use redis::Commands;
use rediscope::{RetryPolicy, SessionManager};
use tempfile::TempDir;

use super::operations;
use rediscope_testing::proxy::Proxy;
use rediscope_testing::server::Server;

pub(crate) const POOL: u32 = 8;
/// The manager's user, so that taking its rights away leaves the test's own alone.
pub(crate) const USER: &str = "app";
const PASSWORD: &str = "secret";

/// Small, so that many faults fit into a run.
pub(crate) const CONNECT: Duration = Duration::from_millis(250);
pub(crate) const RESPONSE: Duration = Duration::from_millis(250);
pub(crate) const CHECKOUT: Duration = Duration::from_millis(1000);
pub(crate) const CLEANUP: Duration = Duration::from_millis(100);
pub(crate) const MAX_PIN_TIME: Duration = Duration::from_millis(400);
/// No attempt of a `run` begins later than this after the first.
pub(crate) const RETRY_DEADLINE: Duration = Duration::from_millis(1000);
pub(crate) const FLUSH_BYTES: usize = 2048;

const IN_MEMORY: &str = "/dev/shm";

pub(crate) struct Fixture {
    pub(crate) server: Server,
    pub(crate) proxy: Proxy,
    /// Removed after the server is gone.
    _data: TempDir,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let builder = || {
            let mut builder = tempfile::Builder::new();
            builder.prefix("faults-");
            builder
        };
        let data = match Path::new(IN_MEMORY).is_dir() {
            true => builder().tempdir_in(IN_MEMORY),
            false => builder().tempdir(),
        }
        .expect("a directory for the append-only file");
        let place = data.path().to_str().expect("a path in UTF-8").to_owned();
        let password = format!(">{PASSWORD}");
        let server = Server::with(&[
            "--dir",
            &place,
            "--appendonly",
            "yes",
            "--appendfsync",
            "always",
            // Rewritten often: a restart reads it all.
            "--auto-aof-rewrite-min-size",
            "16mb",
            "--user",
            USER,
            "on",
            &password,
            "~*",
            "&*",
            "+@all",
        ]);
        let proxy = Proxy::to(&server);
        let fixture = Self { server, proxy, _data: data };
        fixture.open_accounts();
        fixture
    }

    fn open_accounts(&self) {
        let mut admin = self.server.connection();
        for lawless in [false, true] {
            for account in 0..operations::ACCOUNTS {
                let key = operations::account(account, lawless);
                let _: () = admin.set(key, operations::OPENING_BALANCE).unwrap();
            }
        }
        for sign in 0..operations::SIGNS {
            let _: () = admin.set(operations::sign(sign), operations::sign_text(sign)).unwrap();
        }
    }

    pub(crate) fn sessions(&self) -> SessionManager {
        SessionManager::builder(format!("redis://{USER}:{PASSWORD}@{}/", self.proxy.address()))
            .max_size(POOL)
            .connect_timeout(CONNECT)
            .response_timeout(RESPONSE)
            .checkout_timeout(CHECKOUT)
            .cleanup_timeout(CLEANUP)
            .max_pin_time(MAX_PIN_TIME)
            .flush_bytes(FLUSH_BYTES)
            .build()
            .unwrap()
    }
}

/// Bounded by time more than by number: a conflict means that another caller committed.
pub(crate) fn policy() -> RetryPolicy {
    RetryPolicy::default()
        .attempts(12)
        .deadline(RETRY_DEADLINE)
        .max_backoff(Duration::from_millis(20))
}
