//! The address of a session manager: one server, a cluster by some of its nodes, or the master that
//! sentinels know.
//!
//! An address's own text is in no error, because it may hold a password.

use percent_encoding::percent_decode_str;
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo};

use crate::error::config::ConfigError;

/// The address of a session manager.
#[derive(Clone, Debug)]
pub enum Address {
    /// One server.
    One(Box<ConnectionInfo>),
    /// A cluster, by nodes that know the others.
    Cluster(Vec<ConnectionInfo>),
    /// The master with a name, at the address that the sentinels report.
    Sentinel(Box<SentinelConfig>),
}

/// A master by its name, and the sentinels that know its address.
#[derive(Clone, Debug)]
pub struct SentinelConfig {
    pub(crate) name: String,
    pub(crate) sentinels: Vec<ConnectionInfo>,
    /// User, password, database, protocol and TLS of the servers; the host is not used.
    pub(crate) server_template: ConnectionInfo,
    /// Whether the caller has given the template; the default is a server without encryption.
    pub(crate) server_template_given: bool,
}

/// One server's address, and whether it names a protocol.
#[derive(Clone, Debug)]
pub struct Node {
    info: ConnectionInfo,
    names_protocol: bool,
}

mod sealed {
    pub trait Sealed {}
}

/// The argument of [`SessionManager::connect`](crate::SessionManager::connect): a URL, or one of
/// redis-rs's descriptions of an address.
///
/// | URL | is |
/// |---|---|
/// | `redis://user:password@host:port/db` | one server |
/// | `rediss://…` | the same over TLS (feature `tls-rustls`; certificates of one's own are the builder's `tls`) |
/// | `redis+unix:///path?db=1` | one server, by a socket |
/// | `redis+cluster://user:password@host:port,host:port/` | a cluster, by some of its nodes |
/// | `rediss+cluster://…` | the same over TLS |
/// | `redis+sentinel://user:password@host:port,host:port/name/db` | the master of that name, by some sentinels |
/// | `rediss+sentinel://…` | the same, over TLS to the sentinels and to the servers |
///
/// Each URL may end with `?protocol=resp3`. All nodes of a cluster use the same user, password and
/// protocol. Behind sentinels, user and password are the servers'; those of the sentinels are
/// `?sentinel_username=…&sentinel_password=…`. The default port of sentinels is 26379.
///
/// An address is refused if it has an unknown parameter, or one twice, or a user without a
/// password. It is also refused if it ends with `#insecure` (TLS without verification), or with any
/// other fragment. In a user or a password the characters `?`, `#`, `@`, `/`, `:`, `%` and `&` are
/// escaped: `%3F`, `%23`, `%40`, `%2F`, `%3A`, `%25` and `%26`.
///
/// This trait is sealed: it is implemented for `&str`, `String`, `&String`, `(host, port)`,
/// `redis::ConnectionInfo` and `redis::ConnectionAddr`.
///
/// ```no_run
/// use rediscope::SessionManager;
///
/// # fn main() -> Result<(), rediscope::error::ConfigError> {
/// let one = SessionManager::connect("redis://127.0.0.1/")?;
/// let other = SessionManager::connect(("127.0.0.1", 6380))?;
/// # Ok(()) }
/// ```
pub trait IntoAddress: sealed::Sealed {
    /// Parses the address.
    #[doc(hidden)]
    fn into_address(self) -> Result<Address, ConfigError>;

    /// The same for one of several nodes, or for the template of servers.
    #[doc(hidden)]
    fn into_node(self) -> Result<Node, ConfigError>;
}

macro_rules! one_server {
    ($([$($generics:tt)*] $type:ty;)+) => {$(
        impl<$($generics)*> sealed::Sealed for $type {}

        impl<$($generics)*> IntoAddress for $type {
            fn into_address(self) -> Result<Address, ConfigError> {
                one(self).map(|info| Address::One(Box::new(info)))
            }

            fn into_node(self) -> Result<Node, ConfigError> {
                let info = one(self)?;
                let unnamed = RedisConnectionInfo::default().protocol();
                let names_protocol = info.redis_settings().protocol() != unnamed;
                Ok(Node { info, names_protocol })
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
        match self.split_once("://") {
            Some(("redis+cluster", nodes)) => cluster_of("redis", nodes),
            Some(("rediss+cluster", nodes)) => cluster_of("rediss", nodes),
            Some(("redis+sentinel", rest)) => sentinel_of("redis", rest),
            Some(("rediss+sentinel", rest)) => sentinel_of("rediss", rest),
            _ => self.into_node().map(|node| Address::One(Box::new(node.info))),
        }
    }

    fn into_node(self) -> Result<Node, ConfigError> {
        // As redis-rs does it: a line end behind the address is not the password's.
        let query = parameters(self.trim_matches(|c: char| c <= ' '))?;
        let names_protocol = query.iter().any(|(name, _)| *name == "protocol");
        let info = self
            .into_connection_info()
            .map_err(|error| wrong(format!("{}; {}", plain(&error), form_of(self))))?;
        let info = one(info)?;
        // Those of a socket: redis-rs reads them as those of a form, where `+` is a space.
        let mut auth = info.redis_settings().clone();
        for (name, value) in query {
            match name {
                "user" => auth = auth.set_username(decoded(value)?),
                "pass" => auth = auth.set_password(decoded(value)?),
                _ => {}
            }
        }
        Ok(Node { info: info.set_redis_settings(auth), names_protocol })
    }
}

impl sealed::Sealed for &String {}

impl IntoAddress for &String {
    fn into_address(self) -> Result<Address, ConfigError> {
        self.as_str().into_address()
    }

    fn into_node(self) -> Result<Node, ConfigError> {
        self.as_str().into_node()
    }
}

impl sealed::Sealed for String {}

impl IntoAddress for String {
    fn into_address(self) -> Result<Address, ConfigError> {
        self.as_str().into_address()
    }

    fn into_node(self) -> Result<Node, ConfigError> {
        self.as_str().into_node()
    }
}

pub(crate) fn one(to: impl IntoConnectionInfo) -> Result<ConnectionInfo, ConfigError> {
    let info = to
        .into_connection_info()
        .map_err(|error| ConfigError::Address { reason: plain(&error) })?;
    match info.addr() {
        ConnectionAddr::TcpTls { insecure: true, .. } => Err(wrong(INSECURE)),
        ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. }
            if host.contains(',') =>
        {
            Err(wrong(SEVERAL_HOSTS))
        }
        _ => Ok(info),
    }
}

/// The form that an address should have which could not be parsed.
fn form_of(url: &str) -> &'static str {
    let scheme = url.trim().split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
    match scheme.as_deref() {
        Some("rediss" | "valkeys") if !cfg!(feature = "tls-rustls") => {
            "TLS needs the feature `tls-rustls` of rediscope"
        }
        Some("unix" | "redis+unix" | "valkey+unix") => {
            "a socket has the form redis+unix:///path?db=0"
        }
        Some("redis" | "rediss" | "valkey" | "valkeys") => {
            "a server has the form redis://user:password@host:6379/0, without user and password if there are \
             none; in these two `/`, `?`, `#`, `@`, `:` and `%` are written %2F, %3F, %23, %40, %3A and %25"
        }
        _ => {
            "an address begins with redis://, rediss://, redis+unix://, redis+cluster:// or redis+sentinel://, as in \
             redis://host:6379/0"
        }
    }
}

fn wrong(reason: impl Into<String>) -> ConfigError {
    ConfigError::Address { reason: reason.into() }
}

const INSECURE: &str = "TLS without verification (`#insecure`, `insecure: true`) is not supported; for a \
                        certificate of your own authority give its root to `Builder::tls`, or to \
                        `tls_root_certificates` of a `Config`";

const SEVERAL_HOSTS: &str = "several hosts are those of a cluster, redis+cluster://host,host/, or of sentinels, \
                             redis+sentinel://host,host/name";

const FRAGMENT: &str = "nothing may follow `#`; a `#` in a user or a password is written %23";

/// Parses the parameters of an address, each of which must be known and given once.
///
/// The error has the names of unknown ones, not their values.
fn parameters(url: &str) -> Result<Vec<(&str, &str)>, ConfigError> {
    let (url, fragment) = url.split_once('#').unwrap_or((url, ""));
    match fragment {
        "" => {}
        "insecure" => return Err(wrong(INSECURE)),
        _ => return Err(wrong(FRAGMENT)),
    }
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    let scheme = base.split_once(':').map_or("", |(scheme, _)| scheme);
    let known: &[&str] = match scheme.ends_with("unix") {
        true => &["db", "user", "pass", "protocol"],
        false => &["protocol"],
    };
    named(query, known)
}

/// Parses the parameters of a query, each of which must be among the known ones and given once.
fn named<'q>(query: &'q str, known: &[&str]) -> Result<Vec<(&'q str, &'q str)>, ConfigError> {
    let mut found: Vec<(&str, &str)> = Vec::new();
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        // After an `@`, the query is probably the second half of a password; after a password's
        // parameter, this one is.
        let secret = query.contains('@')
            || !known.contains(&name) && found.iter().any(|(before, _)| before.contains("pass"));
        let shown = match name.len() <= 64 && name.chars().all(is_name) && !secret {
            true => format!("`{name}`"),
            false => {
                let hint = "in a user or a password, `?` is written %3F and `&` is %26";
                format!("of the name that it has ({hint})")
            }
        };
        if !known.contains(&name) {
            let known = known.join(", ");
            let hint = match name {
                "db" | "database" => "; the database is in the path: redis://host/1",
                "user" | "username" | "pass" | "password" => {
                    "; user and password are before the host: redis://user:password@host"
                }
                _ => "",
            };
            return Err(wrong(format!("there is no parameter {shown}; there are: {known}{hint}")));
        }
        if found.iter().any(|(before, _)| *before == name) {
            return Err(wrong(format!("the parameter {shown} is given twice")));
        }
        found.push((name, value));
    }
    Ok(found)
}

/// Splits a URL of several hosts into user and password, and the hosts.
fn login_and_hosts(authority: &str) -> Result<(&str, &str), ConfigError> {
    let Some(at) = authority.rfind('@') else { return Ok(("", authority)) };
    let (login, hosts) = authority.split_at(at + 1);
    match login.matches('@').count() {
        1 => Ok((login, hosts)),
        _ => Err(wrong(
            "user and password are given once, before the first host, and are the same for all; an \
             `@` in them is written %40",
        )),
    }
}

/// `user:password@host:port,host:port/?protocol=resp3`: each node as a URL of its own.
fn cluster_of(scheme: &str, nodes: &str) -> Result<Address, ConfigError> {
    let end = nodes.find(['/', '?', '#']).unwrap_or(nodes.len());
    let (authority, rest) = nodes.split_at(end);
    let (login, hosts) = login_and_hosts(authority)?;
    let node = |host: &str| format!("{scheme}://{login}{host}{rest}").into_node();
    let nodes = hosts.split(',').map(node).collect::<Result<_, _>>()?;
    checked(nodes)
}

/// A cluster by some of its nodes.
pub(crate) fn cluster<T: IntoAddress>(
    nodes: impl IntoIterator<Item = T>,
) -> Result<Address, ConfigError> {
    checked(nodes.into_iter().map(IntoAddress::into_node).collect::<Result<_, _>>()?)
}

fn checked(named: Vec<Node>) -> Result<Address, ConfigError> {
    let refused = |reason: &str| Err(wrong(reason));
    alike(&named)?;
    let nodes: Vec<_> = named.into_iter().map(|node| node.info).collect();
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

/// Checks that all nodes have the first node's settings: another one's would be ignored.
fn alike(nodes: &[Node]) -> Result<(), ConfigError> {
    let Some((first, others)) = nodes.split_first() else { return Ok(()) };
    let (is_first_tls, first_auth) = (is_tls(&first.info), first.info.redis_settings());
    for (node, nth) in others.iter().zip(2..) {
        let auth = node.info.redis_settings();
        let differs = |what: &str, hint: &str| {
            Err(wrong(format!(
                "node {nth} of the cluster names another {what} than the first one, and all nodes are \
                 reached as the first one is: {hint}"
            )))
        };
        if is_tls(&node.info) != is_first_tls {
            return differs(
                "scheme",
                "write rediss:// in each address for TLS, or redis:// in each for none",
            );
        }
        if has_certificates(&node.info) != has_certificates(&first.info) {
            return differs("set of certificates", "give the certificates to `Builder::tls`");
        }
        if node.names_protocol && auth.protocol() != first_auth.protocol() {
            return differs(
                "protocol",
                "write the same `?protocol=` in each address, or in the first",
            );
        }
        if auth.username().is_none() && auth.password().is_none() {
            continue;
        }
        let hint = "write the same user and password in each address, or in the first alone";
        if auth.username() != first_auth.username() {
            return differs("user", hint);
        }
        if auth.password() != first_auth.password() {
            return differs("password", hint);
        }
    }
    Ok(())
}

pub(crate) fn is_tls(info: &ConnectionInfo) -> bool {
    matches!(info.addr(), ConnectionAddr::TcpTls { .. })
}

/// Returns the connection settings of `template` for another address.
pub(crate) fn at_address(template: &ConnectionInfo, host: &str, port: u16) -> ConnectionInfo {
    let (mut address, host) = (template.addr().clone(), host.to_owned());
    match &mut address {
        ConnectionAddr::TcpTls { host: old, port: old_port, .. } => {
            (*old, *old_port) = (host, port)
        }
        _ => address = ConnectionAddr::Tcp(host, port),
    }
    template.clone().set_addr(address)
}

fn has_certificates(info: &ConnectionInfo) -> bool {
    matches!(info.addr(), ConnectionAddr::TcpTls { tls_params: Some(_), .. })
}

/// `user:password@host:port,host:port/name/db?sentinel_password=…&protocol=resp3`
fn sentinel_of(scheme: &str, text: &str) -> Result<Address, ConfigError> {
    if text.ends_with("#insecure") {
        return Err(wrong(INSECURE));
    }
    let (text, query) = text.split_once('?').unwrap_or((text, ""));
    if text.contains('#') {
        return Err(wrong(FRAGMENT));
    }
    let (authority, path) = text.split_once('/').unwrap_or((text, ""));
    let (login, hosts) = login_and_hosts(authority)?;
    let (name, db) = path.split_once('/').unwrap_or((path, ""));
    let (mut user, mut password, mut rest) = (None, None, Vec::new());
    for (key, value) in named(query, &["protocol", "sentinel_username", "sentinel_password"])? {
        match key {
            "sentinel_username" => user = Some(decoded(value)?),
            "sentinel_password" => password = Some(decoded(value)?),
            _ => rest.push(format!("{key}={value}")),
        }
    }
    if user.is_some() && password.is_none() {
        return Err(wrong("sentinel_username needs a sentinel_password"));
    }
    let sentinels = hosts.split(',').filter(|host| !host.is_empty()).map(|host| {
        // After the last bracket, so that an IPv6 address's colons are not taken for its port's.
        let tail = host.rsplit_once(']').map_or(host, |(_, tail)| tail);
        let port = if tail.contains(':') { "" } else { ":26379" };
        let Node { info, names_protocol } = format!("{scheme}://{host}{port}/").into_node()?;
        // Set directly and not written into the URL, so that no character of them can change the
        // host.
        let mut auth = info.redis_settings().clone();
        auth = user.iter().fold(auth, |auth, user| auth.set_username(user));
        auth = password.iter().fold(auth, |auth, password| auth.set_password(password));
        Ok(Node { info: info.set_redis_settings(auth), names_protocol })
    });
    let sentinels = sentinels.collect::<Result<Vec<_>, _>>()?;
    let server_template =
        format!("{scheme}://{login}localhost/{db}?{}", rest.join("&")).into_node()?.info;
    set_server_template(found_by(name, sentinels)?, server_template)
}

/// Decodes a parameter's value: escapes are replaced, and every other character is kept.
fn decoded(value: &str) -> Result<String, ConfigError> {
    let decoded = percent_decode_str(value).decode_utf8();
    decoded.map(Into::into).map_err(|_| wrong("a user or a password is not UTF-8"))
}

/// The master of a name, by some of the sentinels that know it.
pub(crate) fn behind<T: IntoAddress>(
    name: &str,
    sentinels: impl IntoIterator<Item = T>,
) -> Result<Address, ConfigError> {
    let sentinels = sentinels.into_iter().map(IntoAddress::into_node);
    found_by(name, sentinels.collect::<Result<_, _>>()?)
}

fn found_by(name: &str, sentinels: Vec<Node>) -> Result<Address, ConfigError> {
    let sentinels: Vec<_> = sentinels.into_iter().map(|node| node.info).collect();
    let refused = |reason: &str| Err(wrong(reason));
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
    let server_template = one("redis://localhost/")?;
    Ok(Address::Sentinel(Box::new(SentinelConfig {
        name: name.to_owned(),
        sentinels,
        server_template,
        server_template_given: false,
    })))
}

/// Sets the template of the servers behind sentinels.
pub(crate) fn set_server_template(
    address: Address,
    to: impl IntoAddress,
) -> Result<Address, ConfigError> {
    match address {
        Address::Sentinel(mut behind) => {
            behind.server_template = to.into_node()?.info;
            behind.server_template_given = true;
            Ok(Address::Sentinel(behind))
        }
        _ => Err(ConfigError::setting("server_info", "applies only to servers behind sentinels")),
    }
}

/// Checks that servers behind sentinels with TLS are not reached without encryption, unless the
/// caller has requested that. Only the whole address shows it.
pub(crate) fn check(address: &Address) -> Result<(), ConfigError> {
    match address {
        Address::Sentinel(behind)
            if !behind.server_template_given && behind.sentinels.iter().any(is_tls) =>
        {
            let problem = "is needed: the sentinels are reached over TLS, and the servers would be \
                           reached in clear; give it rediss://user:password@any/0 for TLS to the \
                           servers too, or redis://user:password@any/0 if they are to be reached in \
                           clear (its host and port are not used)";
            Err(ConfigError::setting("server_info", problem))
        }
        _ => Ok(()),
    }
}

/// The fixed part of the error's text: its detail may hold a piece of the address.
pub(crate) fn plain(error: &redis::RedisError) -> String {
    let text = error.to_string();
    text.split(" - ").next().unwrap_or_default().to_owned()
}

#[cfg(test)]
#[path = "../../tests/unit/url.rs"]
mod tests;
