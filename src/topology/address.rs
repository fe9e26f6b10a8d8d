//! What a session manager connects to: one server, a cluster by some of its nodes, or
//! the master that sentinels know.
//!
//! Never: an address's own text in an error. It may hold a password.

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo};

use crate::error::ConfigError;

/// What a session manager connects to.
#[derive(Clone, Debug)]
pub enum Address {
    /// One server.
    One(Box<ConnectionInfo>),
    /// A cluster, by nodes that know the others.
    Cluster(Vec<ConnectionInfo>),
    /// The master of a name, wherever the sentinels say that it is.
    Sentinel(Box<Behind>),
}

/// A master by its name, and who knows where it is.
#[derive(Clone, Debug)]
#[cfg_attr(not(feature = "sentinel"), allow(dead_code, reason = "such an address is refused"))]
pub struct Behind {
    pub(crate) name: String,
    pub(crate) sentinels: Vec<ConnectionInfo>,
    /// User, password, database, protocol and TLS of the servers; the host says nothing.
    pub(crate) like: ConnectionInfo,
}

mod sealed {
    pub trait Sealed {}
}

/// What [`SessionManager::connect`](crate::SessionManager::connect) takes: a URL, or one of
/// redis-rs's descriptions of an address.
///
/// | URL | is |
/// |---|---|
/// | `redis://user:password@host:port/db` | one server |
/// | `rediss://…` | the same over TLS (feature `tls-rustls`; certificates of one's own are the builder's `tls`) |
/// | `redis+unix:///path?db=1` | one server, by a socket |
/// | `redis+cluster://user:password@host:port,host:port/` | a cluster, by some of its nodes (feature `cluster`) |
/// | `rediss+cluster://…` | the same over TLS |
/// | `redis+sentinel://user:password@host:port,host:port/name/db` | the master of that name, by some sentinels (feature `sentinel`) |
/// | `rediss+sentinel://…` | the same, over TLS to the sentinels and to the servers |
///
/// `?protocol=resp3` may stand behind each. User, password and protocol are the same for all nodes
/// of a cluster. Behind sentinels, user and password are the servers'; the sentinels' own are
/// `?sentinel_username=…&sentinel_password=…`, and their port is 26379 where none is given.
///
/// This trait is sealed: it is implemented for `&str`, `String`, `(host, port)`,
/// `redis::ConnectionInfo` and `redis::ConnectionAddr`.
///
/// ```no_run
/// use rediscope::SessionManager;
///
/// # fn main() -> Result<(), rediscope::ConfigError> {
/// let one = SessionManager::connect("redis://127.0.0.1/")?;
/// let other = SessionManager::connect(("127.0.0.1", 6380))?;
/// # Ok(()) }
/// ```
pub trait IntoAddress: sealed::Sealed {
    /// Understands it.
    #[doc(hidden)]
    fn into_address(self) -> Result<Address, ConfigError>;
}

macro_rules! one_server {
    ($([$($generics:tt)*] $type:ty;)+) => {$(
        impl<$($generics)*> sealed::Sealed for $type {}

        impl<$($generics)*> IntoAddress for $type {
            fn into_address(self) -> Result<Address, ConfigError> {
                one(self).map(|info| Address::One(Box::new(info)))
            }
        }
    )+};
}

one_server! {
    [] ConnectionInfo;
    [] ConnectionAddr;
    [H: Into<String>] (H, u16);
}

impl sealed::Sealed for &str {}

impl IntoAddress for &str {
    fn into_address(self) -> Result<Address, ConfigError> {
        let cluster = [("redis+cluster://", "redis://"), ("rediss+cluster://", "rediss://")]
            .into_iter()
            .find_map(|(scheme, each)| Some((self.strip_prefix(scheme)?, each)));
        let sentinel = [("redis+sentinel://", "redis"), ("rediss+sentinel://", "rediss")]
            .into_iter()
            .find_map(|(scheme, each)| Some((self.strip_prefix(scheme)?, each)));
        match (cluster, sentinel) {
            (Some((nodes, scheme)), _) => cluster_of(scheme, nodes),
            (None, Some((rest, scheme))) => sentinel_of(scheme, rest),
            (None, None) => one(self).map(|info| Address::One(Box::new(info))),
        }
    }
}

impl sealed::Sealed for String {}

impl IntoAddress for String {
    fn into_address(self) -> Result<Address, ConfigError> {
        self.as_str().into_address()
    }
}

pub(crate) fn one(to: impl IntoConnectionInfo) -> Result<ConnectionInfo, ConfigError> {
    to.into_connection_info().map_err(|error| ConfigError::Address { reason: plain(&error) })
}

/// `user:password@host:port,host:port/?protocol=resp3`: each node as a URL of its own.
fn cluster_of(scheme: &str, nodes: &str) -> Result<Address, ConfigError> {
    let end = nodes.find(['/', '?', '#']).unwrap_or(nodes.len());
    let (authority, rest) = nodes.split_at(end);
    let (login, hosts) = match authority.rfind('@') {
        Some(at) => authority.split_at(at + 1),
        None => ("", authority),
    };
    let node = |host: &str| one(format!("{scheme}{login}{host}{rest}"));
    let nodes = hosts.split(',').map(node).collect::<Result<_, _>>()?;
    checked(nodes)
}

/// A cluster by some of its nodes.
pub(crate) fn cluster<T: IntoConnectionInfo>(
    nodes: impl IntoIterator<Item = T>,
) -> Result<Address, ConfigError> {
    checked(nodes.into_iter().map(one).collect::<Result<_, _>>()?)
}

pub(crate) const NO_CLUSTER: &str = "a cluster needs the feature cluster";

fn checked(nodes: Vec<ConnectionInfo>) -> Result<Address, ConfigError> {
    let refused = |reason: &str| Err(ConfigError::Address { reason: reason.to_owned() });
    if !cfg!(feature = "cluster") {
        return refused(NO_CLUSTER);
    }
    if nodes.is_empty() {
        return refused("a cluster is reached by at least one of its nodes");
    }
    if nodes.iter().any(|node| matches!(node.addr(), ConnectionAddr::Unix(_))) {
        return refused("a cluster's nodes are reached over TCP");
    }
    if nodes.iter().any(|node| node.redis_settings().db() != 0) {
        return refused("a cluster has one database, 0");
    }
    Ok(Address::Cluster(nodes))
}

pub(crate) const NO_SENTINEL: &str = "sentinels need the feature sentinel";

/// `user:password@host:port,host:port/name/db?sentinel_password=…&protocol=resp3`
fn sentinel_of(scheme: &str, text: &str) -> Result<Address, ConfigError> {
    let (text, query) = text.split_once('?').unwrap_or((text, ""));
    let (authority, path) = text.split_once('/').unwrap_or((text, ""));
    let (login, hosts) = match authority.rfind('@') {
        Some(at) => authority.split_at(at + 1),
        None => ("", authority),
    };
    let (name, db) = path.split_once('/').unwrap_or((path, ""));
    let (mut user, mut password, mut rest) = (String::new(), None, Vec::new());
    for part in query.split('&').filter(|part| !part.is_empty()) {
        match part.split_once('=') {
            Some(("sentinel_username", value)) => user = escaped(value),
            Some(("sentinel_password", value)) => password = Some(escaped(value)),
            _ => rest.push(part),
        }
    }
    let own = password.map(|password| format!("{user}:{password}@")).unwrap_or_default();
    let sentinels = hosts.split(',').filter(|host| !host.is_empty()).map(|host| {
        // Behind the last bracket, so that an IPv6 address's colons are not its port's.
        let tail = host.rsplit_once(']').map_or(host, |(_, tail)| tail);
        let port = if tail.contains(':') { "" } else { ":26379" };
        format!("{scheme}://{own}{host}{port}/")
    });
    let like = one(format!("{scheme}://{login}localhost/{db}?{}", rest.join("&")))?;
    behind(name, sentinels).map(|address| match address {
        Address::Sentinel(behind) => Address::Sentinel(Box::new(Behind { like, ..*behind })),
        other => other,
    })
}

/// What would end the part of a URL that a password stands in.
fn escaped(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for letter in value.chars() {
        match letter {
            '@' => escaped.push_str("%40"),
            ':' => escaped.push_str("%3A"),
            '/' => escaped.push_str("%2F"),
            '#' => escaped.push_str("%23"),
            letter => escaped.push(letter),
        }
    }
    escaped
}

/// The master of a name, by some of the sentinels that know it.
pub(crate) fn behind<T: IntoConnectionInfo>(
    name: &str,
    sentinels: impl IntoIterator<Item = T>,
) -> Result<Address, ConfigError> {
    let sentinels = sentinels.into_iter().map(one).collect::<Result<Vec<_>, _>>()?;
    let refused = |reason: &str| Err(ConfigError::Address { reason: reason.to_owned() });
    if !cfg!(feature = "sentinel") {
        return refused(NO_SENTINEL);
    }
    if sentinels.is_empty() {
        return refused("a master is found by at least one sentinel");
    }
    if name.is_empty() {
        return refused("the master's name is missing: redis+sentinel://host:port/name");
    }
    let tcp = |info: &ConnectionInfo| !matches!(info.addr(), ConnectionAddr::Unix(_));
    if !sentinels.iter().all(tcp) {
        return refused("sentinels are reached over TCP");
    }
    let like = one("redis://localhost/")?;
    Ok(Address::Sentinel(Box::new(Behind { name: name.to_owned(), sentinels, like })))
}

/// Sets what the servers behind sentinels are like.
pub(crate) fn like(address: Address, to: impl IntoConnectionInfo) -> Result<Address, ConfigError> {
    match address {
        Address::Sentinel(behind) => {
            Ok(Address::Sentinel(Box::new(Behind { like: one(to)?, ..*behind })))
        }
        _ => Err(ConfigError::knob("servers_like", "is for servers that sentinels know")),
    }
}

/// The fixed part of the error's text: its detail may hold a piece of the address.
pub(super) fn plain(error: &redis::RedisError) -> String {
    let text = error.to_string();
    text.split(" - ").next().unwrap_or_default().to_owned()
}

#[cfg(all(test, not(feature = "cluster")))]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_without_its_feature_is_refused_by_name() {
        let refused = "redis+cluster://secret@a:1,b:2/".into_address().unwrap_err().to_string();
        assert!(refused.contains("feature cluster") && !refused.contains("secret"), "{refused}");
    }
}

#[cfg(all(test, feature = "cluster"))]
mod tests {
    use super::*;

    fn nodes(url: &str) -> Result<Vec<String>, String> {
        match url.into_address().map_err(|error| error.to_string())? {
            Address::Cluster(nodes) => {
                Ok(nodes.iter().map(|node| node.addr().to_string()).collect())
            }
            _ => Ok(Vec::new()),
        }
    }

    #[test]
    fn a_cluster_is_named_by_one_url_of_several_nodes() {
        assert_eq!(nodes("redis+cluster://a:1,b/"), Ok(vec!["a:1".into(), "b:6379".into()]));
        assert_eq!(nodes("redis+cluster://[::1]:7"), Ok(vec!["::1:7".into()]));
        assert_eq!(nodes("redis://a"), Ok(vec![]));
        let Ok(Address::Cluster(found)) =
            "redis+cluster://u:p%40@a,b?protocol=resp3".into_address()
        else {
            unreachable!("a cluster");
        };
        for node in found {
            let settings = node.redis_settings();
            assert_eq!((settings.username(), settings.password()), (Some("u"), Some("p@")));
        }
    }

    #[test]
    fn what_no_cluster_has_is_refused_without_a_word_of_the_address() {
        for url in ["redis+cluster://", "redis+cluster://secret:a/1", "redis+cluster://a/1"] {
            let error = nodes(url).unwrap_err();
            assert!(!error.contains("secret"), "{error}");
        }
        let none: [&str; 0] = [];
        assert!(cluster(none).is_err());
    }
}

#[cfg(all(test, feature = "sentinel"))]
mod sentinel_tests {
    use super::*;

    fn behind(url: &str) -> Behind {
        match url.into_address() {
            Ok(Address::Sentinel(behind)) => *behind,
            other => unreachable!("{other:?}"),
        }
    }

    #[test]
    fn a_master_is_named_by_one_url_of_several_sentinels() {
        let found = behind(
            "redis+sentinel://app:p%40@s1:1,[::1]:2,s3/mymaster/4?sentinel_password=a/b&protocol=resp3",
        );
        let sentinels: Vec<_> = found.sentinels.iter().map(|one| one.addr().to_string()).collect();
        assert_eq!(found.name, "mymaster");
        assert_eq!(sentinels, ["s1:1", "::1:2", "s3:26379"]);
        let servers = found.like.redis_settings();
        assert_eq!((servers.username(), servers.password()), (Some("app"), Some("p@")));
        assert_eq!(servers.db(), 4);
        assert!(servers.protocol().supports_resp3());
        for sentinel in &found.sentinels {
            assert_eq!(sentinel.redis_settings().password(), Some("a/b"));
            assert_eq!(sentinel.redis_settings().username(), None);
        }
    }

    #[test]
    fn what_names_no_master_is_refused_without_a_word_of_the_address() {
        for url in [
            "redis+sentinel://secret@a:1",
            "redis+sentinel://:secret@/name",
            "redis+sentinel://a:secret/m",
        ] {
            let error = url.into_address().unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
