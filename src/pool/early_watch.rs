//! WATCH and declared reads that a waiting caller leaves with its place: they travel behind the EXEC of
//! another caller, whose connection it gets next. A caller that sends no EXEC sends them alone.
//!
//! They apply nothing, so the two callers share no fate. What an EXEC cannot prove ends the connection,
//! and the waiting caller begins on another one.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::connection::connection::Connection;
use crate::error::connection::ConnectionError;
use crate::pool::first_packet::{Armed, FirstPacket, MAX_BYTES, Register};
use crate::protocol::connection_state::Expect;
use crate::settings::settings::Settings;
use crate::sync::lock;
use crate::text::opaque_debug;

/// Time after which a caller waits for any connection again, if its WATCH was taken: the connection for which
/// it waits may have gone silent.
pub(crate) fn patience(response_timeout: Duration) -> Duration {
    response_timeout / 4
}

/// WATCH and the reads of a caller that may have to wait.
pub(crate) struct WatchOffer<'r, T> {
    pub(crate) watch: &'r [u8],
    /// Whether another caller can send them.
    pub(crate) travels: bool,
    /// The bytes of the reads, and their number.
    pub(crate) reads: (&'r [u8], usize),
    /// The caller's transaction needs a register with this tag.
    pub(crate) needs: Option<Armed>,
    /// The caller's turn on hot keys, if it has one.
    pub(crate) turn: Option<&'r Arc<T>>,
}

impl<T> Clone for WatchOffer<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for WatchOffer<'_, T> {}

impl<T> WatchOffer<'_, T> {
    /// `None`: they are too long, or another caller cannot send them.
    pub(crate) fn early_watch(&self) -> Option<EarlyWatch> {
        if !self.travels {
            return None;
        }
        let (watch, (reads, count)) = (self.watch, self.reads);
        let (bytes, reads) = ([watch, reads].concat(), u32::try_from(count).ok()?);
        (bytes.len() <= MAX_BYTES).then_some(EarlyWatch { bytes, reads, needs: self.needs })
    }
}

/// WATCH and the reads of a caller that waits.
pub(crate) struct EarlyWatch {
    bytes: Vec<u8>,
    reads: u32,
    needs: Option<Armed>,
}

impl EarlyWatch {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn expected(&self) -> [(Expect, u32); 2] {
        [(Expect::Watch, 1), (Expect::Plain, self.reads)]
    }

    /// Returns whether they can travel behind an EXEC after which the connection watches this register.
    pub(in crate::pool) fn fits(&self, armed: Option<Armed>) -> bool {
        // A watch that needs no register would find it changed when it expires or is evicted.
        self.needs == armed
    }
}

/// A caller's request, with which it gets the connection.
pub(crate) struct EarlyRequest<C> {
    packet: Packet,
    connection: Mutex<Option<C>>,
}

enum Packet {
    Watch(Arc<EarlyWatch>),
    First(FirstPacket),
}

impl<C> EarlyRequest<C> {
    pub(in crate::pool) fn new(watch: EarlyWatch) -> Self {
        Self { packet: Packet::Watch(Arc::new(watch)), connection: Mutex::new(None) }
    }

    pub(in crate::pool) fn first(packet: FirstPacket) -> Self {
        Self { packet: Packet::First(packet), connection: Mutex::new(None) }
    }

    /// The WATCH and the reads that may travel behind an EXEC.
    pub(in crate::pool) fn watch(&self) -> Option<&Arc<EarlyWatch>> {
        match &self.packet {
            Packet::Watch(watch) => Some(watch),
            Packet::First(_) => None,
        }
    }

    /// Time after which its caller waits for any connection again, while another caller has the request.
    pub(in crate::pool) fn patience(&self, response_timeout: Duration) -> Duration {
        match &self.packet {
            Packet::Watch(_) => patience(response_timeout),
            // It is sent at once.
            Packet::First(_) => Duration::MAX,
        }
    }

    /// Whether it can be sent on a free connection that watches this register.
    pub(in crate::pool) fn fits(&self, register: Register) -> bool {
        match &self.packet {
            // Elsewhere no message can be sent without waiting.
            Packet::Watch(_) if !cfg!(unix) => false,
            Packet::Watch(watch) => match watch.needs {
                None => !register.is_watched,
                needs => needs == register.armed,
            },
            Packet::First(packet) => packet.fits(register),
        }
    }

    /// Sends what the socket accepts at once.
    ///
    /// # Errors
    /// The connection cannot be used any more, and nothing was sent that applies anything.
    pub(in crate::pool) fn send(
        &self,
        connection: &mut Connection,
        settings: &Settings,
    ) -> Result<(), ConnectionError> {
        match &self.packet {
            Packet::Watch(watch) => connection.send_early_watch(watch.bytes(), &watch.expected()),
            Packet::First(packet) => packet.send(connection, settings),
        }
    }

    pub(in crate::pool) fn put(&self, connection: C) {
        *lock(&self.connection) = Some(connection);
    }

    pub(in crate::pool) fn take(&self) -> Option<C> {
        lock(&self.connection).take()
    }
}

impl<C> std::fmt::Debug for EarlyRequest<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EarlyRequest").finish_non_exhaustive()
    }
}

opaque_debug!(EarlyWatch);
