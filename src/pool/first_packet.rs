//! The first packet of a caller that waits for a connection, left with its place. The caller that frees the
//! connection sends it, and passes the connection on.
//!
//! A packet that was sent in part belongs to the caller that waits: only it sends the rest.

use crate::connection::connection::Connection;
use crate::error::connection::ConnectionError;
use crate::protocol::connection_state::Expect;
use crate::protocol::resp::encode::{EXEC, UNWATCH};
use crate::settings::settings::Settings;

/// Maximum number of bytes of a packet: the socket of a connection that awaits nothing accepts it at once.
pub(in crate::pool) const MAX_BYTES: usize = 4096;

/// The hash tag of a connection's register, which is armed.
pub(crate) type Armed = Option<u32>;

/// The first packet of a caller that waits.
pub(crate) struct FirstPacket {
    bytes: Vec<u8>,
    kind: PacketKind,
}

enum PacketKind {
    /// UNWATCH, MULTI and this many commands. An exactly-once block needs the register of this tag.
    Block { commands: u32, needs: Option<Armed> },
    /// Plain commands.
    Calls { count: u32 },
}

/// The register that a free connection watches.
#[derive(Clone, Copy)]
pub(in crate::pool) struct Register {
    pub(in crate::pool) is_watched: bool,
    /// It was written so lately that an exactly-once block may use it.
    pub(in crate::pool) armed: Option<Armed>,
}

impl Register {
    pub(in crate::pool) fn of(connection: &Connection, settings: &Settings) -> Self {
        let is_armed = connection.is_armed(settings.register_ttl / 2);
        let armed = connection.known_marker().filter(|_| is_armed).map(|marker| marker.tag());
        Self { is_watched: connection.state().watches_marker(), armed }
    }
}

impl FirstPacket {
    /// A block that begins with UNWATCH and MULTI; `None`: it is too long.
    pub(crate) fn block(bytes: &[u8], commands: u32, needs: Option<Armed>) -> Option<Self> {
        Self::new(bytes, PacketKind::Block { commands, needs })
    }

    /// Plain commands; `None`: they are too long.
    pub(crate) fn calls(bytes: &[u8], count: usize) -> Option<Self> {
        Self::new(bytes, PacketKind::Calls { count: u32::try_from(count).ok()? })
    }

    fn new(bytes: &[u8], kind: PacketKind) -> Option<Self> {
        (bytes.len() <= MAX_BYTES).then(|| Self { bytes: bytes.to_vec(), kind })
    }

    /// Whether it can be sent on a connection that watches this register.
    pub(in crate::pool) fn fits(&self, register: Register) -> bool {
        match self.kind {
            PacketKind::Block { needs: Some(tag), .. } => register.armed == Some(tag),
            PacketKind::Block { .. } | PacketKind::Calls { .. } => true,
        }
    }

    /// Sends what the socket accepts at once.
    ///
    /// # Errors
    /// The connection cannot be used any more, and nothing was sent.
    pub(in crate::pool) fn send(
        &self,
        connection: &mut Connection,
        settings: &Settings,
    ) -> Result<(), ConnectionError> {
        let (commands, needs) = match self.kind {
            PacketKind::Calls { count } => {
                return connection.send_ahead(&self.bytes, &[(Expect::Plain, count)]);
            }
            PacketKind::Block { commands, needs } => (commands, needs),
        };
        // As the commit of the block makes it: the two are one message.
        let unwatches = connection.state().watches_marker() && needs.is_none();
        let from = if unwatches { 0 } else { UNWATCH.len() };
        let mut bytes = connection.take_scratch();
        bytes.extend_from_slice(self.bytes.get(from..).unwrap_or_default());
        if needs.is_some() {
            let marker = connection.marker(&settings.prefix)?;
            marker.advance();
            marker.set(&mut bytes, settings.register_ttl);
        }
        bytes.extend_from_slice(EXEC);
        if let (Some(marker), Some(_)) = (connection.known_marker(), needs) {
            marker.watch(&mut bytes);
        }
        let own = u32::from(needs.is_some());
        let expected = [
            (Expect::Unwatch, u32::from(unwatches)),
            (Expect::Multi, 1),
            (Expect::Queued, commands + own),
            (Expect::Exec, 1),
            (Expect::WatchMarker, own),
        ];
        let sent = connection.send_ahead(&bytes, &expected);
        connection.keep_scratch(bytes);
        sent
    }
}
