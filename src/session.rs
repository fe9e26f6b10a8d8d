//! The session manager: two pools, and the handles to them.
//!
//! Never: a connection opened before it is needed. A server that is down is no error here.

use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;
use std::time::Duration;

use redis::IntoConnectionInfo;
use scheduled_thread_pool::{OnPoolDropBehavior, ScheduledThreadPool};

use crate::commit::resolve::Asker;
use crate::config::Settings;
use crate::connection::manager::Purpose;
use crate::connection::nodes::Nodes;
use crate::connection::pool::{Kind, Pool};
use crate::error::{CommitToken, ConfigError, Resolution, Resolver as _};
use crate::lock::acquire::Mode;
use crate::lock::handle::{Lock, RwLock};
use crate::lock::hub::Hub;
use crate::observe::{OpenScope, Status};
use crate::pooled::Pooled;
use crate::topology::{self, Address, Endpoint, IntoAddress};
use crate::transaction::admission::Admission;
use crate::transactional::Transactional;

/// Opens links for both pools, backs off, and comes by to take stuck scopes back.
const THREADS: usize = 3;

/// Two pools to one server, one for single commands and one for transactions, so that a plain
/// read can never open a scope.
///
/// Cheap to clone, and shared between threads as it is. When the last clone and the last handle
/// and guard are dropped, the connections are closed.
///
/// ```no_run
/// use rediscope::{SessionManager, prelude::*};
///
/// # fn main() -> Result<(), rediscope::Error> {
/// let sessions = SessionManager::connect("redis://127.0.0.1/")?;
/// let mut db = sessions.pooled();
/// let _: () = db.set("greeting", "hello")?;
/// let accounts = sessions.transactional();
/// accounts.run(|tx| Ok(tx.incr("hits", 1)))?;
/// println!("{}", sessions.status());
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct SessionManager {
    pooled: Nodes,
    transactional: Nodes,
    asker: Arc<Asker>,
    admission: Arc<Admission>,
    locks: Arc<Hub>,
}

impl UnwindSafe for SessionManager {}
impl RefUnwindSafe for SessionManager {}

impl SessionManager {
    /// A session manager with every setting at its default.
    ///
    /// Nothing is connected yet: a server that is down is told by the first use, within its
    /// deadline. What can be connected to, and by which URL: [`IntoAddress`].
    ///
    /// # Errors
    /// [`ConfigError::Address`] where the address cannot be understood. It is not repeated in the
    /// message, since it may hold a password.
    pub fn connect(to: impl IntoAddress) -> Result<Self, ConfigError> {
        Self::builder(to).build()
    }

    /// A session manager with settings of your own.
    pub fn builder(to: impl IntoAddress) -> Builder {
        Builder { address: to.into_address(), settings: Settings::default() }
    }

    /// A session manager of a cluster, with settings of your own; `nodes` are some of its nodes,
    /// which tell the others. User, password, protocol and TLS of all nodes are those of the first
    /// (feature `cluster`). Each master has two pools, as one server has.
    ///
    /// ```no_run
    /// # use rediscope::SessionManager;
    /// # fn main() -> Result<(), rediscope::ConfigError> {
    /// let nodes = ["redis://10.0.0.1:6379", "redis://10.0.0.2:6379"];
    /// let sessions = SessionManager::cluster(nodes).max_size(4).build()?;
    /// # Ok(()) }
    /// ```
    pub fn cluster<T: IntoConnectionInfo>(nodes: impl IntoIterator<Item = T>) -> Builder {
        Builder { address: topology::cluster_address(nodes), settings: Settings::default() }
    }

    /// The handle for single commands.
    pub fn pooled(&self) -> Pooled {
        Pooled::new(self.pooled.clone())
    }

    /// The handle for transactions.
    pub fn transactional(&self) -> Transactional {
        let asker = Arc::<Asker>::clone(&self.asker);
        Transactional::new(self.transactional.clone(), asker, Arc::clone(&self.admission))
    }

    /// The lock of this name: one holder at a time, whatever process he is in. See [`Lock`].
    ///
    /// Names of locks, [read/write locks](Self::rw_lock) and [semaphores](Self::semaphore) are
    /// apart. An empty name is refused by `acquire`.
    pub fn lock(&self, name: impl AsRef<str>) -> Lock {
        Lock::new(Arc::clone(&self.locks), "lock", name.as_ref(), Mode::Exclusive(1))
    }

    /// The semaphore of this name: at most `permits` holders at a time. All who use it should say
    /// the same number; each counts for himself.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use rediscope::SessionManager;
    /// # fn main() -> Result<(), rediscope::Error> {
    /// # let sessions = SessionManager::connect("redis://127.0.0.1/")?;
    /// let permit = sessions.semaphore("printers", 3).acquire(Duration::from_secs(5))?;
    /// # drop(permit);
    /// # Ok(()) }
    /// ```
    pub fn semaphore(&self, name: impl AsRef<str>, permits: u32) -> Lock {
        Lock::new(Arc::clone(&self.locks), "sem", name.as_ref(), Mode::Exclusive(permits))
    }

    /// The read/write lock of this name: many readers, or one writer. See [`RwLock`].
    pub fn rw_lock(&self, name: impl AsRef<str>) -> RwLock {
        RwLock::new(&self.locks, name.as_ref())
    }

    /// Finds out what became of an exactly-once transaction of this process's or another's, within
    /// `checkout_timeout`: see [`InDoubt::resolve`](crate::InDoubt::resolve).
    pub fn resolve(&self, token: &CommitToken) -> Resolution {
        self.asker.resolve(token, None)
    }

    /// Like [`resolve`](Self::resolve), for as long as `timeout`.
    pub fn resolve_within(&self, token: &CommitToken, timeout: Duration) -> Resolution {
        self.asker.resolve(token, Some(timeout))
    }

    /// The open scopes of both pools, oldest first: age, place, name, thread.
    pub fn pins(&self) -> Vec<OpenScope> {
        let mut pins = self.transactional.scopes();
        pins.extend(self.pooled.scopes());
        pins.sort_by_key(|pin| std::cmp::Reverse(pin.age));
        pins
    }

    /// Ends the session: from now on every use answers
    /// [`CheckoutError::Closed`](crate::CheckoutError::Closed). Open scopes have `timeout` to end;
    /// then they are taken back, and what they do later answers
    /// [`PinExpired`](crate::PinExpired). Returns how many were taken back.
    ///
    /// All clones and handles of this manager are closed with it.
    pub fn close(&self, timeout: Duration) -> usize {
        let deadline = std::time::Instant::now() + timeout;
        self.pooled.close();
        self.transactional.close();
        self.asker.close();
        self.locks.close();
        self.pooled.drain(deadline) + self.transactional.drain(deadline)
    }

    /// What both pools hold now, who holds it, and what they have done. Nothing is sent, and no
    /// scope is waited for.
    pub fn status(&self) -> Status {
        Status {
            server: self.transactional.address(),
            pooled: self.pooled.status(),
            transactional: self.transactional.status(),
            locks: self.locks.status(),
        }
    }
}

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
    address: Result<Address, ConfigError>,
    settings: Settings,
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
        Ok(SessionManager { pooled, transactional, asker, admission, locks })
    }
}

fn nodes(
    address: Address,
    settings: &Arc<Settings>,
    (transactional, pooled): (Kind, Kind),
) -> Result<(Nodes, Nodes), ConfigError> {
    match address {
        Address::One(info) => {
            let endpoint = Endpoint::new(*info, settings)?;
            let one = |kind| Nodes::one(Pool::new(kind, endpoint.clone()));
            Ok((one(transactional), one(pooled)))
        }
        #[cfg(feature = "cluster")]
        Address::Cluster(nodes) => {
            use crate::connection::nodes::{Cluster, atlas::Atlas};

            // Both kinds of pools go by one map.
            let atlas = Arc::new(Atlas::new(nodes, Arc::clone(settings))?);
            let many = |kind| Nodes::cluster(Cluster::new(kind, Arc::clone(&atlas)));
            Ok((many(transactional), many(pooled)))
        }
        // Refused when the address was read.
        #[cfg(not(feature = "cluster"))]
        Address::Cluster(_) => {
            Err(ConfigError::Address { reason: topology::NO_CLUSTER.to_owned() })
        }
    }
}
