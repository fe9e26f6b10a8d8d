//! The settings of a session manager, one method each, and the pools that are made of them.
//!
//! Never: a connection. Never: an address's text in `Debug` or in an error.

use std::sync::Arc;
#[cfg(feature = "sentinel")]
use std::sync::OnceLock;
use std::time::Duration;

use redis::IntoConnectionInfo;
use scheduled_thread_pool::{OnPoolDropBehavior, ScheduledThreadPool};

#[cfg(feature = "sentinel")]
use super::Replicas;
use super::SessionManager;
use crate::commit::resolve::Asker;
use crate::config::Settings;
use crate::connection::manager::Purpose;
use crate::connection::nodes::Nodes;
use crate::connection::pool::{Kind, Pool};
use crate::credentials::{CredentialsProvider, Provider};
use crate::error::ConfigError;
use crate::lock::hub::Hub;
use crate::topology::{self, Address, Endpoint};
use crate::transaction::admission::Admission;

/// Opens links for both pools, backs off, and comes by to take stuck scopes back.
const THREADS: usize = 3;

/// The settings of a [`SessionManager`]. Plain data until [`build`](Self::build), which checks
/// them once.
///
/// ```no_run
/// use std::time::Duration;
/// use rediscope::SessionManager;
///
/// # fn main() -> Result<(), rediscope::ConfigError> {
/// let sessions = SessionManager::builder("redis://127.0.0.1/")
///     .max_size(16)
///     .response_timeout(Duration::from_millis(500))
///     .build()?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing exists before build()"]
pub struct Builder {
    pub(super) address: Result<Address, ConfigError>,
    pub(super) settings: Settings,
}

macro_rules! knobs {
    ($($(#[$doc:meta])* $name:ident: $type:ty,)+) => {$(
        $(#[$doc])*
        pub fn $name(mut self, $name: $type) -> Self {
            self.settings.$name = $name;
            self
        }
    )+};
}

impl Builder {
    knobs! {
        /// Bounds the connections of each pool; both pools have this size, and in a cluster those of
        /// each master. At the bound a call waits in line for `checkout_timeout`. Default 8, at least
        /// 1.
        max_size: u32,
        /// Keeps this many connections open and idle in each pool, so that a first command need
        /// not wait for one to be opened. Default 0, at most `max_size`.
        min_idle: u32,
        /// Bounds how long a connection may lie idle; then it is closed. `None`: for ever.
        /// Default 10 minutes.
        idle_timeout: Option<Duration>,
        /// Bounds the age of a connection, less up to a tenth at random; then it is replaced the
        /// next time it is checked out or in. `None`: for ever. Default 30 minutes.
        max_lifetime: Option<Duration>,
        /// How long a TCP connection is quiet before the system asks whether the other side is
        /// there. `None`: never. Default 60 s. Not for unix sockets.
        tcp_keepalive: Option<Duration>,
        /// Bounds how long the system waits for sent bytes to be acknowledged (TCP_USER_TIMEOUT,
        /// Linux). `None`: the system's default, which is the default here. Not for unix sockets.
        tcp_user_timeout: Option<Duration>,
        /// Bounds opening one connection, hand-shake included. Opening goes on in the background
        /// and is tried again with a pause of at most 250 ms. Default 1 s.
        connect_timeout: Duration,
        /// Bounds the wait for a connection, dead ones replaced on the way included. At the bound
        /// the call answers [`CheckoutError`](crate::CheckoutError). At least `connect_timeout` +
        /// 2 × `response_timeout`. Default 5 s.
        checkout_timeout: Duration,
        /// Bounds one exchange with the server: one write and all its replies. At the bound the
        /// connection is closed. A blocking command on the pooled handle has its own timeout on
        /// top. Default 2 s.
        response_timeout: Duration,
        /// Bounds what a dropped scope may spend on DISCARD or UNWATCH. At the bound the
        /// connection is closed. Default 500 ms.
        cleanup_timeout: Duration,
        /// How lately a connection must have answered to be used without being asked first.
        /// Longer saves round trips on rare commands; a connection that dies inside the window is
        /// told as `NotSent` or `InDoubt`. Zero asks always. Default 5 ms.
        trust_window: Duration,
        /// Bounds how long a scope may go unused: then its connection is taken back, its
        /// transaction discarded, and a late use answers
        /// [`PinExpired`](crate::PinExpired). Default 60 s.
        max_pin_time: Duration,
        /// A scope open for longer than this is warned of, once, with the place that began it.
        /// `None`: never. Default 10 s.
        pin_warning: Option<Duration>,
        /// Bounds what a transaction keeps in memory: past it, what waits is sent ahead in a
        /// chunk. (Not inside `watch(..).run`, and not past an open savepoint.) Default 64 KiB,
        /// at least 1.
        flush_bytes: usize,
        /// Bounds the commands of one transaction. Past it, the transaction fails with
        /// [`Error::TooLarge`](crate::Error::TooLarge) and nothing is applied. Default 1,000,000.
        max_commands: u32,
        /// Bounds the bytes of one transaction, as they go over the wire. Past it, the
        /// transaction fails with [`Error::TooLarge`](crate::Error::TooLarge) and nothing is
        /// applied. Default 512 MiB. The server has a bound of its own
        /// (`client-query-buffer-limit`, 1 GB).
        max_bytes: usize,
        /// Bounds how many blocks of [`grouped`](crate::TransactionOptions::grouped) handles
        /// travel in one write. One dead connection puts so many in doubt at once. Default 16, at
        /// least 1, which groups none.
        max_group: u32,
        /// How long the register of an exactly-once connection lives on the server after its last
        /// use: so long a doubt can be resolved. Each connection that commits exactly once has
        /// one, and leaves it behind when it closes. Default 1 hour, 1 second to 30 days.
        register_ttl: Duration,
    }

    /// What the names of this crate's own keys begin with: `<prefix>:reg:…` for the registers of
    /// exactly-once connections, `<prefix>:once:…` for the keys of
    /// [`exactly_once_as`](crate::TransactionOptions::exactly_once_as), `<prefix>:lock:…`, `:rw:…`,
    /// `:sem:…` and `<prefix>:fence` for locks. The user needs the right to read and write them,
    /// for locks also to channels of that prefix. Default `rediscope`; not empty, and without braces.
    pub fn register_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.settings.register_prefix = prefix.into();
        self
    }

    /// Where user and password come from when they change while the program runs; see
    /// [`CredentialsProvider`]. `build` refuses it together with an address that holds a user or a
    /// password. Behind sentinels they are the servers'; the sentinels' own are in the address.
    /// Default: those of the address, for good.
    pub fn credentials_provider(mut self, provider: impl CredentialsProvider) -> Self {
        self.settings.credentials = Some(Provider::new(provider));
        self
    }

    /// Behind sentinels: user, password, database, protocol and TLS of the servers, as an address
    /// whose host and port are not used. `build` refuses it for any other address.
    pub fn servers_like(mut self, to: impl IntoConnectionInfo) -> Self {
        self.address = self.address.and_then(|address| topology::like(address, to));
        self
    }

    /// Checks the settings and makes the two pools. Nothing is connected yet.
    ///
    /// # Errors
    /// [`ConfigError`] names the setting that cannot work.
    pub fn build(self) -> Result<SessionManager, ConfigError> {
        let address = self.address?;
        self.settings.check()?;
        let settings = Arc::new(self.settings);
        let threads = Arc::new(
            ScheduledThreadPool::builder()
                .num_threads(THREADS)
                .thread_name_pattern("rediscope-{}")
                .on_drop_behavior(OnPoolDropBehavior::DiscardPendingScheduled)
                .build(),
        );
        let kind = |name, purpose| Kind {
            name,
            purpose,
            settings: Arc::clone(&settings),
            threads: Arc::clone(&threads),
            counters: Arc::default(),
            impatient: false,
        };
        let kinds =
            (kind("transactional", Purpose::Transactional), kind("pooled", Purpose::Pooled));
        let (transactional, pooled) = nodes(address, &settings, kinds)?;
        let asker = Arc::new(Asker::new(transactional.clone()));
        let admission = Arc::new(Admission::new());
        let locks = Arc::new(Hub::new(pooled.clone()));
        Ok(SessionManager {
            pooled,
            transactional,
            asker,
            admission,
            locks,
            #[cfg(feature = "sentinel")]
            replicas: Arc::new(Replicas { pool: OnceLock::new(), threads }),
        })
    }
}

fn nodes(
    address: Address,
    settings: &Arc<Settings>,
    (transactional, pooled): (Kind, Kind),
) -> Result<(Nodes, Nodes), ConfigError> {
    let both = |endpoint: &Endpoint| {
        let one = |kind: &Kind| Nodes::one(Pool::new(kind.clone(), endpoint.clone()));
        (one(&transactional), one(&pooled))
    };
    match address {
        Address::One(info) => Ok(both(&Endpoint::new(*info, settings)?)),
        #[cfg(feature = "sentinel")]
        Address::Sentinel(behind) => Ok(both(&Endpoint::behind(*behind, settings)?)),
        #[cfg(feature = "cluster")]
        Address::Cluster(nodes) => {
            use crate::connection::nodes::{Cluster, atlas::Atlas};

            // Both kinds of pools go by one map.
            let atlas = Arc::new(Atlas::new(nodes, Arc::clone(settings))?);
            let many = |kind| Nodes::cluster(Cluster::new(kind, Arc::clone(&atlas)));
            Ok((many(transactional), many(pooled)))
        }
        // Refused when the address was read.
        #[cfg(not(feature = "sentinel"))]
        Address::Sentinel(_) => {
            Err(ConfigError::Address { reason: topology::NO_SENTINEL.to_owned() })
        }
        #[cfg(not(feature = "cluster"))]
        Address::Cluster(_) => {
            Err(ConfigError::Address { reason: topology::NO_CLUSTER.to_owned() })
        }
    }
}
