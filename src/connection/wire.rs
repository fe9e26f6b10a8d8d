//! The bytes of one connection, as threads and tasks see them.

use crate::connection::deadline::Deadline;
use crate::error::connection::ConnectionError;
use crate::protocol::resp::decode::SharedArrays;
use crate::protocol::resp::reply::Reply;

/// The bytes of one connection. Every wait has a deadline.
pub(crate) trait Wire: Send {
    /// Whether a message is sent completely, and its replies are kept, if its call is dropped.
    const FINISHES_DROPPED: bool = false;

    /// Sets the maximum bytes of one reply.
    fn limit_reply_size(&mut self, bytes: usize);

    /// The first `replies` to the next message are for several callers: each counts by itself, and of the
    /// arrays, each behind so many replies, each part, whose lengths these are. See [`Parser::share`](crate::protocol::resp::decode::Parser::share).
    fn share_replies(&mut self, arrays: SharedArrays, replies: u64);

    /// The first `own` replies to the next message are passed to its caller without the others, which are the next
    /// caller's.
    fn split_replies(&mut self, _own: u64) {}

    /// Whether the next reply may be that to WATCH, by its kind. `None`: nothing of it has arrived.
    fn may_be_watch(&self) -> Option<bool>;

    /// Writes the whole message, or has it written: see [`unsent`](Self::unsent). An error has the number of bytes that may have been sent; the last
    /// byte was not sent. During a long message, up to `awaited` replies that arrive are kept.
    /// Dropped before its end, it may have sent any part; see
    /// [`FINISHES_DROPPED`](Self::FINISHES_DROPPED).
    ///
    /// Bytes of a TLS record count as sent when the socket has accepted the whole record: the peer
    /// cannot decrypt a part of it.
    fn send(
        &mut self,
        bytes: &[u8],
        awaited: u64,
        deadline: Deadline,
    ) -> impl Future<Output = Result<(), (usize, ConnectionError)>> + Send;

    /// Returns the next reply of the bytes that have arrived, or up to `most` replies if each is
    /// QUEUED. The server's pushes are skipped. `None`: more bytes must arrive first.
    fn next(&mut self, most: u32) -> Result<Option<Reply>, ConnectionError>;

    /// Returns whether bytes have arrived that are no returned reply yet.
    fn has_unread(&self) -> bool;

    /// Waits until more bytes have arrived. Dropped before its end, it leaves the bytes that have
    /// arrived for [`next`](Self::next).
    fn fill(
        &mut self,
        deadline: Deadline,
    ) -> impl Future<Output = Result<(), ConnectionError>> + Send;

    /// After an error of [`next`](Self::next) or [`fill`](Self::fill): the number of bytes of the last
    /// message that may have been sent. `None`: all of them.
    #[inline(always)]
    fn unsent(&self) -> Option<usize> {
        None
    }

    /// Returns the length of the array whose end could not be read, if the failed reply is an
    /// array.
    fn unread(&self) -> Option<usize>;

    /// Checks for bytes that arrived while no reply is awaited, without waiting. Fails if the
    /// connection was closed, or if the server may not send these bytes now. Whole pushes and
    /// attributes are dropped; half a push is kept.
    fn check_socket(&mut self, pushes: bool) -> Result<(), ConnectionError>;

    /// Fails if bytes were read that the server may not send while no reply is awaited.
    fn check_unexpected(&mut self, pushes: bool) -> Result<(), ConnectionError>;
}
