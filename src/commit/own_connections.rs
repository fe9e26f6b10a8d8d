//! The connections of a session manager for its own queries: one to each server that it asks.
//!
//! A query takes its connection and gives it back. So a query that is dropped, or that fails, has closed
//! its connection.

use std::sync::Mutex;
use std::time::Instant;

use redis::Value;

use crate::connection::connection::Connection;
use crate::connection::endpoint::Endpoint;
use crate::connection::io::Io;
use crate::pool::server_pool::ServerPool;
use crate::protocol::server_error::ServerError;
use crate::sync::lock;

/// A connection of one side.
pub(crate) type OwnConnection<P> = Connection<<<P as ServerPool>::Io as Io>::Wire>;

/// The connections that no query has, each with the address that it leads to.
pub(super) struct OwnConnections<P: ServerPool> {
    kept: Mutex<Kept<P>>,
}

struct Kept<P: ServerPool> {
    connections: Vec<(String, OwnConnection<P>)>,
    /// Whether they stay open when no query waits.
    stays_open: bool,
    closed: bool,
}

impl<P: ServerPool> Default for OwnConnections<P> {
    fn default() -> Self {
        let kept = Kept { connections: Vec::new(), stays_open: false, closed: false };
        Self { kept: Mutex::new(kept) }
    }
}

impl<P: ServerPool> OwnConnections<P> {
    /// Takes the connection to this server, if there is one that may be used.
    ///
    /// A connection to a former master, with former credentials, or of another runtime is closed.
    /// `version`: of the present credentials, if it is known.
    pub(super) fn take(
        &self,
        endpoint: &Endpoint,
        version: Option<u64>,
    ) -> Option<OwnConnection<P>> {
        let mut kept = lock(&self.kept);
        let address = endpoint.address();
        let at = kept.connections.iter().position(|(other, _)| *other == address)?;
        let (_, mut connection) = kept.connections.swap_remove(at);
        drop(kept);
        let is_usable = connection.close_reason(Instant::now(), endpoint.generation()).is_none()
            && !version.is_some_and(|version| connection.needs_reauth(version))
            && P::Io::is_usable_here(connection.wire());
        is_usable.then_some(connection)
    }

    /// Keeps a connection with these replies. Returns false if its server has become a replica: the address
    /// may lead to the new master by now, so it is closed, and the sentinels are asked.
    pub(super) fn keep(
        &self,
        endpoint: &Endpoint,
        connection: OwnConnection<P>,
        replies: &[Value],
    ) -> bool {
        let is_of_replica = |reply: &Value| match reply {
            Value::ServerError(error) => ServerError::is_of_replica(error.code()),
            _ => false,
        };
        if replies.iter().any(is_of_replica) {
            endpoint.invalidate();
            return false;
        }
        let address = endpoint.address().into_owned();
        let mut kept = lock(&self.kept);
        let former = match kept.closed {
            true => Some(connection),
            false => {
                let at = kept.connections.iter().position(|(other, _)| *other == address);
                let former = at.map(|at| kept.connections.swap_remove(at).1);
                kept.connections.push((address, connection));
                former
            }
        };
        drop(kept);
        drop(former);
        true
    }

    /// Closes the connections to all other servers.
    pub(super) fn retain(&self, servers: &[Endpoint]) {
        let serves = |address: &str| servers.iter().any(|server| server.address() == address);
        let mut kept = lock(&self.kept);
        let all = std::mem::take(&mut kept.connections);
        let (rest, gone): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(address, _)| serves(address));
        kept.connections = rest;
        drop(kept);
        drop(gone);
    }

    /// Keeps the connections from now on also when no query waits.
    pub(super) fn stay_open(&self) {
        lock(&self.kept).stays_open = true;
    }

    /// No query waits for them: they are closed, unless they stay open.
    pub(super) fn rest(&self) {
        let mut kept = lock(&self.kept);
        if !kept.stays_open {
            let gone = std::mem::take(&mut kept.connections);
            drop(kept);
            drop(gone);
        }
    }

    /// Returns them, to be dropped; no other one is kept.
    pub(super) fn close(&self) -> Vec<OwnConnection<P>> {
        let mut kept = lock(&self.kept);
        kept.closed = true;
        let gone = std::mem::take(&mut kept.connections);
        drop(kept);
        gone.into_iter().map(|(_, connection)| connection).collect()
    }
}
