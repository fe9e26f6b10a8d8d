//! The settings of a session manager, one method each, and the pools that are made of them.
//!
//! Never: a connection. Never: an address's text in `Debug` or in an error.

use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;

use crate::commit::resolve::CommitResolver;
use crate::connection::endpoint::Endpoint;
use crate::connection::url;
use crate::connection::url::{Address, IntoAddress};
use crate::dns::Resolver;
use crate::error::config::ConfigError;
use crate::lock::manager::LockManager;
use crate::pool::config::{Logging, PoolConfig};
use crate::pool::pool::Pool;
use crate::pool::router::Router;
use crate::process::current::Process;
use crate::protocol::handshake::Purpose;
use crate::session::manager::Replicas;
use crate::session::manager::SessionManager;
use crate::session::threads;
use crate::settings::credentials::{CredentialsProvider, Provider};
use crate::settings::settings::Settings;
use crate::settings::table;
#[cfg(feature = "tls-rustls")]
use crate::settings::tls::Tls;
use crate::transaction::hot_keys::ContentionLimiter;

/// The most renewals and releases in one write.
const MOST_CALLS: u32 = 64;

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
    /// A session manager with every setting at its default.
    ///
    /// Nothing is connected yet: if the server is down, the first use fails within its
    /// deadline. Addresses that can be connected to: [`IntoAddress`].
    ///
    /// # Errors
    /// [`ConfigError::Address`] where the address cannot be understood. It is not repeated in the
    /// message, since it may hold a password.
    pub fn connect(to: impl IntoAddress) -> Result<Self, ConfigError> {
        Self::builder(to).build()
    }

    /// A session manager with settings of your own.
    pub fn builder(to: impl IntoAddress) -> Builder {
        Builder::new(to.into_address())
    }

    /// A session manager of a cluster, with settings of your own; `nodes` are some of its nodes,
    /// which know the others. Each master has two pools, as one server has.
    ///
    /// User, password, protocol and TLS of all nodes are those of the first. `build` refuses a node that
    /// names another scheme, user, password or protocol than the first one; a node that names no user and
    /// no password takes the first one's, and one that names no protocol takes that.
    ///
    /// ```no_run
    /// # use rediscope::SessionManager;
    /// # fn main() -> Result<(), rediscope::ConfigError> {
    /// let nodes = ["redis://10.0.0.1:6379", "redis://10.0.0.2:6379"];
    /// let sessions = SessionManager::cluster(nodes).max_size(4).build()?;
    /// # Ok(()) }
    /// ```
    pub fn cluster<T: IntoAddress>(nodes: impl IntoIterator<Item = T>) -> Builder {
        Builder::new(url::cluster(nodes))
    }

    /// A session manager of the master that sentinels know by this name, with
    /// settings of your own. Each sentinel's URL has its own user and password; those of the servers,
    /// and their TLS, are set with [`Builder::server_info`]. Sentinels of TLS without it are refused by
    /// `build`, since the servers would be reached in clear.
    ///
    /// Transactions, single commands, locks and questions about doubts go to the master. When another
    /// server takes its place, all connections to the former one end in one step.
    ///
    /// ```no_run
    /// # use rediscope::SessionManager;
    /// # fn main() -> Result<(), rediscope::ConfigError> {
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
        Self { address, settings: Settings::default() }
    }

    /// `build` will say so, unless there is something else that is wrong already.
    #[cfg(feature = "serde")]
    pub(crate) fn refused(mut self, error: ConfigError) -> Self {
        self.address = self.address.and(Err(error));
        self
    }

    /// Root certificates and client certificate of TLS: every TLS connection, to one server, to all
    /// nodes of a cluster, to sentinels and to the servers behind them. It takes the place of what a
    /// `redis::ConnectionInfo` came with, which `build` refuses otherwise: redis-rs does not hand its
    /// certificates out. Default: the system's root certificates, and no certificate of one's own.
    /// (Feature `tls-rustls`.)
    ///
    /// `build` refuses PEM without a certificate, PEM that cannot be read, a key that is not its
    /// certificate's, and an address that is not one of TLS. Sentinels alone may be reached without
    /// TLS; the servers behind sentinels of TLS are reached in clear only where
    /// [`server_info`](Self::server_info) names an address that begins with `redis://`.
    #[cfg(feature = "tls-rustls")]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.settings.tls = Some(tls);
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

    /// How the names of hosts become addresses, for tests that have no name server of their own.
    #[doc(hidden)]
    pub fn look_up_names_with(
        mut self,
        look_up: impl Fn(&str) -> std::io::Result<Vec<std::net::SocketAddr>> + Send + Sync + 'static,
    ) -> Self {
        self.settings.resolver = Resolver::new(look_up);
        self
    }

    /// Behind sentinels: user, password, database, protocol and TLS of the servers, as an address
    /// whose host and port are not used. `build` refuses it for any other address. It is needed where
    /// [`SessionManager::sentinel`] is given sentinels of TLS: without it the servers would be reached in
    /// clear, so `build` refuses that too.
    pub fn server_info(mut self, to: impl IntoAddress) -> Self {
        self.address = self.address.and_then(|address| url::set_server_template(address, to));
        self
    }

    /// Checks the settings and makes the two pools. Nothing is connected yet.
    ///
    /// # Errors
    /// [`ConfigError`] names the setting that cannot work. [`ConfigError::Threads`]: the system started
    /// no thread for the manager, which needs three.
    pub fn build(self) -> Result<SessionManager, ConfigError> {
        let address = self.address?;
        url::check(&address)?;
        self.settings.check()?;
        #[cfg(feature = "tls-rustls")]
        let address = match &self.settings.tls {
            Some(tls) => tls.over(address)?,
            None => address,
        };
        let mut settings = self.settings;
        if settings.is_forked_child() {
            // The builder was made before a fork: the threads that look names up are the parent's.
            settings.resolver = Resolver::default();
        }
        settings.process = Process::here();
        let settings = Arc::new(settings);
        let process = settings.process.clone();
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
        // One connection to each master, which many callers share.
        let own = PoolConfig {
            settings: Arc::new(Settings {
                max_size: 1,
                min_idle: 0,
                max_group: MOST_CALLS,
                ..(*settings).clone()
            }),
            ..kind("locks", Purpose::Pooled)
        };
        let kinds =
            [kind("transactional", Purpose::Transactional), kind("pooled", Purpose::Pooled), own];
        let [transactional, pooled, own] = nodes(address, &settings, kinds)?;
        let resolver = Arc::new(CommitResolver::new(transactional.clone()));
        let limiter = Arc::new(ContentionLimiter::new());
        let locks = Arc::new(LockManager::new(pooled.clone(), own));
        Ok(SessionManager {
            pooled,
            transactional,
            resolver,
            limiter,
            locks,
            replicas: Arc::new(Replicas { pool: OnceLock::new(), threads, process }),
        })
    }
}

fn nodes(
    address: Address,
    settings: &Arc<Settings>,
    kinds: [PoolConfig; 3],
) -> Result<[Router; 3], ConfigError> {
    let all = |endpoint: Endpoint| {
        kinds.clone().map(|kind| Router::one(Pool::new(kind, endpoint.clone())))
    };
    match address {
        Address::One(info) => Ok(all(Endpoint::new(*info, settings)?)),
        Address::Sentinel(behind) => Ok(all(Endpoint::sentinel(*behind, settings)?)),
        Address::Cluster(nodes) => {
            use crate::pool::router::cluster::Cluster;
            use crate::pool::router::slot_map_refresh::SlotMapCache;

            // All kinds of pools go by one map.
            let slot_map = Arc::new(SlotMapCache::new(nodes, Arc::clone(settings))?);
            Ok(kinds.map(|kind| Router::cluster(Cluster::new(kind, Arc::clone(&slot_map)))))
        } // Refused when the address was read.
    }
}
