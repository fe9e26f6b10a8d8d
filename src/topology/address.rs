//! What a session manager connects to: one server, or a cluster by some of its nodes.
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
/// | `rediss://…` | the same over TLS (feature `tls-rustls`) |
/// | `redis+unix:///path?db=1` | one server, by a socket |
/// | `redis+cluster://user:password@host:port,host:port/` | a cluster, by some of its nodes (feature `cluster`) |
/// | `rediss+cluster://…` | the same over TLS |
///
/// `?protocol=resp3` may stand behind each. User, password and protocol are the same for all nodes
/// of a cluster.
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
        match cluster {
            Some((nodes, scheme)) => cluster_of(scheme, nodes),
            None => one(self).map(|info| Address::One(Box::new(info))),
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
            Address::One(_) => Ok(Vec::new()),
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
