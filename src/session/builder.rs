//! The settings of a session manager, one method each, and the pools that `build` makes from them.
//!
//! No address appears in `Debug` or in an error, because an address may hold a password.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::commit::threads::CommitResolver;
use crate::connection::endpoint::Endpoint;
use crate::connection::login;
use crate::connection::url;
use crate::connection::url::{Address, IntoAddress};
use crate::dns::Resolver;
use crate::error::config::ConfigError;
use crate::lock::manager::LockManager;
use crate::pool::config::{Logging, PoolConfig};
use crate::pool::router::Router;
use crate::pool::router::slot_map_refresh::SlotMapCache;
use crate::pool::server_pool::ServerPool;
use crate::process::current::Process;
#[cfg(feature = "tokio")]
use crate::process::tasks::OwnTasks;
use crate::protocol::handshake::Purpose;
use crate::session::manager::SessionManager;
use crate::session::threads;
use crate::settings::account::Account;
#[cfg(feature = "tokio")]
use crate::settings::credentials::AsyncCredentialsProvider;
use crate::settings::credentials::{CredentialsProvider, Provider};
use crate::settings::settings::Settings;
use crate::settings::table;
#[cfg(feature = "tls-rustls")]
use crate::settings::tls::Tls;
use crate::transaction::hot_keys::HotKeys;

/// Maximum number of renewals and releases in one write.
const MOST_CALLS: u32 = 64;

/// Maximum number of renewals and releases of tasks that are under way at once.
const MOST_IN_FLIGHT: u32 = 16 * 1024;

/// The settings of a [`SessionManager`]. They are plain data; [`build`](Self::build) checks them
/// once.
///
/// ```no_run
/// use std::time::Duration;
/// use rediscope::SessionManager;
///
/// # fn main() -> Result<(), rediscope::error::ConfigError> {
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
    account: Account,
}

macro_rules! methods {
    ($($(#[$doc:meta])* $name:ident: $type:ty $(as $argument:ty)? = $default:expr;)+) => {
        impl Builder {
            $(method! { $(#[$doc])* $name: $type $(as $argument)? })+
        }
    };
}

macro_rules! method {
    ($(#[$doc:meta])* $name:ident: $type:ty) => {
        $(#[$doc])*
        pub fn $name(mut self, $name: $type) -> Self {
            self.settings.$name = $name;
            self
        }
    };
    ($(#[$doc:meta])* $name:ident: $type:ty as $argument:ty) => {
        $(#[$doc])*
        pub fn $name(mut self, $name: $argument) -> Self {
            self.settings.$name = $name.into();
            self
        }
    };
}

table::settings!(methods);

impl SessionManager {
    /// Creates a session manager with every setting at its default.
    ///
    /// This opens no connection. If the server is down, the first use fails within its deadline.
    /// For the supported addresses see [`IntoAddress`].
    ///
    /// # Errors
    /// [`ConfigError::Address`] if the address is not valid. The message does not repeat the
    /// address, because it may hold a password.
    pub fn connect(to: impl IntoAddress) -> Result<Self, ConfigError> {
        Self::builder(to).build()
    }

    /// Returns the builder of a session manager for one server.
    pub fn builder(to: impl IntoAddress) -> Builder {
        Builder::new(to.into_address())
    }

    /// Returns the builder of a session manager for a cluster. `nodes` are some of its nodes, from
    /// which the others become known. Each master has two pools, as a single server has.
    ///
    /// All nodes use the user, password, protocol and TLS of the first node. `build` refuses a node
    /// that names another scheme, user, password or protocol than the first one. A node without
    /// user and password uses the first node's, and a node without protocol uses the first node's.
    ///
    /// ```no_run
    /// # use rediscope::SessionManager;
    /// # fn main() -> Result<(), rediscope::error::ConfigError> {
    /// let nodes = ["redis://10.0.0.1:6379", "redis://10.0.0.2:6379"];
    /// let sessions = SessionManager::cluster(nodes).max_size(4).build()?;
    /// # Ok(()) }
    /// ```
    pub fn cluster<T: IntoAddress>(nodes: impl IntoIterator<Item = T>) -> Builder {
        Builder::new(url::cluster(nodes))
    }

    /// Returns the builder of a session manager for the master that sentinels know by `name`.
    ///
    /// Each sentinel's URL has its own user and password. [`Builder::server_info`] sets those of
    /// the servers, and their TLS. Without it `build` refuses sentinels with TLS, because the
    /// servers would be reached without encryption.
    ///
    /// Transactions, single commands, locks and the resolution of commits in doubt use the master.
    /// After a failover, all connections to the former master end in one step.
    ///
    /// ```no_run
    /// # use rediscope::SessionManager;
    /// # fn main() -> Result<(), rediscope::error::ConfigError> {
    /// let sentinels = ["redis://:secret@10.0.0.1:26379", "redis://:secret@10.0.0.2:26379"];
    /// let sessions = SessionManager::sentinel("mymaster", sentinels)
    ///     .server_info("redis://app:password@any/0")
    ///     .build();
    /// # Ok(()) }
    /// ```
    pub fn sentinel<T: IntoAddress>(name: &str, sentinels: impl IntoIterator<Item = T>) -> Builder {
        Builder::new(url::behind(name, sentinels))
    }
}

impl Builder {
    pub(crate) fn new(address: Result<Address, ConfigError>) -> Self {
        Self { address, settings: Settings::default(), account: Account::default() }
    }

    /// Sets the root certificates and the client certificate of every TLS connection: to one
    /// server, to the nodes of a cluster, to sentinels and to the servers behind them.
    ///
    /// The setting replaces the certificates of a `redis::ConnectionInfo`. Without it `build`
    /// refuses such certificates, because redis-rs does not make them readable. Default: the
    /// system's root certificates, and no client certificate. (Feature `tls-rustls`.)
    ///
    /// `build` refuses PEM without a certificate, PEM that cannot be parsed, and a key that does
    /// not match its certificate. It also refuses an address without TLS. Only sentinels may be
    /// reached without TLS. The servers behind sentinels with TLS are reached without encryption
    /// only if [`server_info`](Self::server_info) has an address that begins with `redis://`.
    #[cfg(feature = "tls-rustls")]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.settings.tls = Some(tls);
        self
    }

    /// Sets the ACL user of all connections, for a [`password`](Self::password) or a
    /// [`password_file`](Self::password_file). Default: the user `default`.
    pub fn username(mut self, username: impl Into<String>) -> Self {
        self.account.username = Some(username.into());
        self
    }

    /// Sets the password apart from the address. No `Debug`, error or log shows it. `build` refuses it
    /// together with an address that holds a user or a password, and with `credentials_provider`. Behind
    /// sentinels it applies to the servers. Default: the address's.
    ///
    /// ```no_run
    /// # use rediscope::SessionManager;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let sessions = SessionManager::builder("redis://127.0.0.1/")
    ///     .username("app")
    ///     .password(std::env::var("REDIS_PASSWORD")?)
    ///     .build()?;
    /// # Ok(()) }
    /// ```
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.account.password = Some(password.into());
        self
    }

    /// Sets the path of a file with the password, such as a mounted secret. The file is read anew for
    /// each connection that is opened; open ones keep their identity. Line ends behind the password are
    /// cut off. `build` reads it too, and refuses what it refuses of
    /// [`password`](Self::password); at most 64 KiB. Default: none.
    ///
    /// A connection that is refused with `WRONGPASS` is attempted again with what the file has then,
    /// until `checkout_timeout`.
    pub fn password_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.account.password_file = Some(path.into());
        self
    }

    /// Sets the source of a user and a password that change while the program runs; see
    /// [`CredentialsProvider`]. `build` refuses it together with an address that holds a user or a
    /// password. Behind sentinels it applies to the servers; the sentinels' own credentials are in
    /// the address. Default: the address's credentials, which do not change.
    pub fn credentials_provider(mut self, provider: impl CredentialsProvider) -> Self {
        self.settings.credentials = Some(Provider::new(provider));
        self
    }

    /// Like [`credentials_provider`](Self::credentials_provider), with an asynchronous source, for
    /// [`build_async`](Self::build_async). [`build`](Self::build) refuses it. Each of the two settings
    /// replaces the other. (Feature `tokio`.)
    #[cfg(feature = "tokio")]
    pub fn async_credentials_provider(mut self, provider: impl AsyncCredentialsProvider) -> Self {
        self.settings.credentials = Some(Provider::asynchronous(provider));
        self
    }

    /// Sets the resolver of host names, for tests without a name server of their own.
    #[doc(hidden)]
    pub fn look_up_names_with(
        mut self,
        look_up: impl Fn(&str) -> std::io::Result<Vec<std::net::SocketAddr>> + Send + Sync + 'static,
    ) -> Self {
        self.settings.resolver = Resolver::new(look_up);
        self
    }

    /// Sets user, password, database, protocol and TLS of the servers behind sentinels. The
    /// address's host and port are not used. `build` refuses this setting for any other kind of
    /// address. [`SessionManager::sentinel`] needs it if the sentinels use TLS: without it the
    /// servers would be reached without encryption, and `build` refuses that too.
    pub fn server_info(mut self, to: impl IntoAddress) -> Self {
        self.address = self.address.and_then(|address| url::set_server_template(address, to));
        self
    }

    /// Checks the settings and makes the two pools. This opens no connection.
    ///
    /// # Errors
    /// [`ConfigError`] names the setting that cannot work. [`ConfigError::Threads`]: the system did
    /// not start the three threads that the manager needs.
    pub fn build(self) -> Result<SessionManager, ConfigError> {
        if self.settings.credentials.as_ref().is_some_and(Provider::is_asynchronous) {
            let problem = "threads cannot call it: use build_async(), or credentials_provider";
            return Err(ConfigError::setting("async_credentials_provider", problem));
        }
        let Checked { address, settings, kinds } = self.checked()?;
        let (own, threads) = (kinds.locks(), Arc::clone(&kinds.pooled.threads));
        let kinds = [kinds.transactional, kinds.pooled, own];
        let [transactional, pooled, own] = routers(address, &settings, kinds)?;
        let resolver = Arc::new(CommitResolver::new(transactional.clone()));
        let hot_keys = Arc::new(HotKeys::new());
        let locks = Arc::new(LockManager::new(pooled.clone(), own));
        let reported = Arc::downgrade(&locks);
        locks
            .counters
            .metrics
            .report(&threads, move || reported.upgrade().map(|locks| locks.status().levels()));
        Ok(SessionManager {
            pooled,
            transactional,
            resolver,
            hot_keys,
            locks,
            replicas: Arc::default(),
        })
    }

    /// Checks the settings, and starts the threads that the pools share.
    pub(crate) fn checked(self) -> Result<Checked, ConfigError> {
        let address = self.address?;
        url::check(&address)?;
        self.settings.check()?;
        #[cfg(feature = "tls-rustls")]
        let address = match &self.settings.tls {
            Some(tls) => tls.over(address)?,
            None => address,
        };
        let mut settings = self.settings;
        let address = login::set_account(self.account, address, &mut settings.credentials)?;
        if settings.is_forked_child() {
            // The builder was made before a fork: the resolver's threads belong to the parent.
            settings.resolver = Resolver::default();
            settings.credentials = settings.credentials.as_ref().map(Provider::after_fork);
        }
        settings.process = Process::here();
        // A clone of the builder makes another session manager.
        #[cfg(feature = "tokio")]
        {
            settings.tasks = OwnTasks::default();
        }
        let settings = Arc::new(settings);
        let threads = Arc::new(threads::start()?);
        let logging = Arc::<Logging>::default();
        let kind = |name, purpose| PoolConfig {
            name,
            purpose,
            settings: Arc::clone(&settings),
            threads: Arc::clone(&threads),
            counters: Arc::default(),
            logging: Arc::clone(&logging),
            fail_fast: false,
        };
        let kinds = PoolKinds {
            transactional: kind("transactional", Purpose::Transactional),
            pooled: kind("pooled", Purpose::Pooled),
        };
        Ok(Checked { address, settings, kinds })
    }
}

/// Settings that can work together.
pub(crate) struct Checked {
    pub(crate) address: Address,
    pub(crate) settings: Arc<Settings>,
    pub(crate) kinds: PoolKinds,
}

/// The pools of a session manager.
pub(crate) struct PoolKinds {
    pub(crate) transactional: PoolConfig,
    pub(crate) pooled: PoolConfig,
}

impl PoolKinds {
    /// The locks' pool, with one connection to each master, which many callers share.
    pub(crate) fn locks(&self) -> PoolConfig {
        let settings = Settings {
            max_size: 1,
            min_idle: 0,
            max_group: MOST_CALLS,
            lanes: 1,
            max_in_flight: MOST_IN_FLIGHT,
            // Those that release locks may outlive the others.
            #[cfg(feature = "tokio")]
            tasks: OwnTasks::default(),
            ..(*self.pooled.settings).clone()
        };
        PoolConfig {
            settings: Arc::new(settings),
            name: "locks",
            counters: Arc::default(),
            ..self.pooled.clone()
        }
    }
}

/// Makes the pools of these purposes.
pub(crate) fn routers<P: ServerPool, const N: usize>(
    address: Address,
    settings: &Arc<Settings>,
    kinds: [PoolConfig; N],
) -> Result<[Router<P>; N], ConfigError> {
    let all = |endpoint: Endpoint| kinds.clone().map(|kind| Router::one(kind, endpoint.clone()));
    match address {
        Address::One(info) => Ok(all(Endpoint::new(*info, settings)?)),
        Address::Sentinel(behind) => Ok(all(Endpoint::sentinel(*behind, settings)?)),
        Address::Cluster(nodes) => {
            // All pools share one slot map.
            let slot_map = Arc::new(SlotMapCache::new(nodes, Arc::clone(settings))?);
            Ok(kinds.map(|kind| Router::cluster(kind, Arc::clone(&slot_map))))
        }
    }
}
