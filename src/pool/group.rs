//! The requests of one write, of a lane or of a leading thread, and what became of each.
//!
//! Exactly-once blocks are one group with one write of the register, so no two such groups are under
//! way on a connection. The other blocks are a group of their own behind it. WATCH of the register
//! comes last, because each EXEC ends it.
//!
//! In a cluster, a group has the blocks of one slot. The register is of that slot too: behind the group,
//! the register of the next exactly-once block is written and watched.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::time::Instant;

use redis::Value;

use crate::connection::connection::{Connection, Interruption};
use crate::connection::deadline::Deadline;
use crate::connection::transport::unreadable;
use crate::connection::wire::Wire;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::error::in_doubt::{CommitToken, SharedToken};
use crate::error::token_cell::{TOKEN_WAS_READ, TokenCell};
use crate::pool::batch_response::{BatchDoubt, BatchResponse, Interrupted};
use crate::pool::context::PoolContext;
use crate::pool::group_request::{GroupJob, GroupRequest, Stay, settle};
use crate::pool::job::{Submitter, Taking};
use crate::pool::line::Line;
use crate::pool::rejected_shapes::RejectedShapes;
use crate::protocol::batch::RequestKind;
use crate::protocol::cluster::redirect::RedirectReply;
use crate::protocol::cluster::slot;
use crate::protocol::connection_state::{CloseReason, Expect};
use crate::protocol::exec::{Unproven, Verdict};
use crate::protocol::marker::CommitMarker;
use crate::protocol::merge::{MergedOutcome, MergedReplies, MergedWrite, Piece};
use crate::protocol::resp::decode::{Fault, FaultKind};
use crate::protocol::resp::encode::{DISCARD, UNWATCH};
use crate::protocol::resp::reply::is_too_large;

/// Number of rejected groups after which a block is sent in a group of its own.
const ALONE_AFTER: u8 = 2;

/// The requests of one write.
pub(crate) struct Group<S: Stay> {
    write: MergedWrite,
    /// In the order of the write: exactly-once blocks, other blocks, single requests.
    members: Vec<Member<S>>,
    /// Number of exactly-once blocks.
    exactly_once: usize,
    /// The token of the exactly-once blocks.
    token: Option<Arc<SharedToken>>,
    /// Whether the register is given up, because the token of one of its blocks is known outside.
    ends_register: bool,
    /// Hash tag of the next register, if that is another one.
    next_tag: Option<Option<u32>>,
    #[cfg_attr(not(feature = "tokio"), expect(dead_code, reason = "a lane looks at it"))]
    left_exactly_once: bool,
    sent: Option<Instant>,
    /// Whether the connection had replied a moment before.
    trusted: bool,
    outcome: Option<MergedOutcome>,
}

/// A request that was taken.
struct Member<S> {
    job: Arc<GroupJob<S>>,
    request: GroupRequest<S>,
}

/// What a waiting job needs.
struct Needs {
    kind: RequestKind,
    bytes: usize,
    exactly_once: bool,
    slot: Option<u16>,
    alone: bool,
    /// The cell of an exactly-once block's token.
    cell: Option<TokenCell>,
}

/// The members of a group by the way in which they are sent.
struct Chosen<S> {
    exactly_once: Vec<Member<S>>,
    /// The only exactly-once block is not to be merged with others.
    exactly_once_alone: bool,
    merged: Vec<Member<S>>,
    alone: Vec<Member<S>>,
    singles: Vec<Member<S>>,
}

impl<S: Stay> Group<S> {
    /// Takes the requests that fit into one write, and encodes the write. Exactly-once blocks are
    /// taken only if the connection `is_armed`. A request that is too late goes to `settle_late`.
    /// `None`: the register cannot be made.
    pub(crate) fn take(
        waiting: &mut VecDeque<Arc<GroupJob<S>>>,
        connection: &mut Connection<impl Wire>,
        context: &PoolContext,
        is_armed: bool,
        shapes: &RejectedShapes,
        settle_late: impl Fn(&GroupJob<S>, GroupRequest<S>),
    ) -> Option<Self> {
        let now = Instant::now();
        let most = context.settings().flush_bytes;
        let (mut chosen, mut bytes) = (Chosen::new(), 0);
        let mut left = VecDeque::new();
        let mut left_exactly_once = false;
        let armed = connection.known_marker().map(CommitMarker::tag).filter(|_| is_armed);
        let mut token = None;
        while let Some(job) = waiting.pop_front() {
            let (mut is_full, mut is_late, mut needs) = (false, false, None);
            let taken = job.take_if(|request| {
                is_late = request.stay.is_late(now);
                let needs = needs.insert(Needs::of(request, shapes));
                is_full = bytes > 0 && bytes + needs.bytes > most;
                is_late || (!is_full && !needs.exactly_once)
            });
            let Some(needs) = needs else { continue };
            if let Taking::Taken(request) = taken {
                if is_late {
                    // Its caller is polled no more, or is about to withdraw it.
                    settle_late(&job, request);
                    continue;
                }
                bytes += needs.bytes;
                chosen.push(Member { job, request }, &needs, waiting.len());
                continue;
            }
            let fits = !needs.exactly_once
                || (armed == Some(tag(needs.slot)) && chosen.fits_exactly_once(needs.alone));
            if is_full || !fits {
                left_exactly_once |= needs.exactly_once;
                left.push_back(job);
                if is_full {
                    break;
                }
                continue;
            }
            if needs.exactly_once && token.is_none() {
                token = next_token(connection, context, needs.slot);
            }
            let shared = token.as_ref().filter(|_| needs.exactly_once);
            let Some(member) = Member::take(job, shared, needs.cell.as_ref()) else { continue };
            bytes += needs.bytes;
            chosen.push(member, &needs, waiting.len());
        }
        // The memory of `waiting` is kept.
        while let Some(job) = left.pop_back() {
            waiting.push_front(job);
        }
        let of_left = if left_exactly_once { next_tag(waiting) } else { None };
        let token = token.filter(|_| !chosen.exactly_once.is_empty());
        let mut group = Self {
            write: MergedWrite::new(connection.take_scratch()),
            members: Vec::new(),
            exactly_once: chosen.exactly_once.len(),
            token,
            ends_register: chosen.exactly_once.iter().any(Member::has_cell),
            next_tag: of_left.filter(|next| Some(*next) != armed),
            left_exactly_once,
            sent: None,
            trusted: true,
            outcome: None,
        };
        // One EXEC has the blocks of one slot.
        chosen.merged.sort_by_key(|member| member.request.batch.slot);
        let encoded = group.encode(&chosen, connection, context);
        let Chosen { exactly_once, merged, alone, singles, .. } = chosen;
        for mut members in [exactly_once, merged, alone, singles] {
            match group.members.is_empty() {
                true => group.members = members,
                false => group.members.append(&mut members),
            }
        }
        // If it is not encoded, its drop settles its members.
        encoded.map(|()| group)
    }

    /// Encodes the write. `None`: the register cannot be made.
    fn encode(
        &mut self,
        chosen: &Chosen<S>,
        connection: &mut Connection<impl Wire>,
        context: &PoolContext,
    ) -> Option<()> {
        self.write.reserve(chosen.len());
        let settings = context.settings();
        let (prefix, ttl) = (settings.prefix.as_str(), settings.register_ttl);
        let begins_register = self.begins_register();
        let write = &mut self.write;
        let has_blocks = !chosen.merged.is_empty() || !chosen.alone.is_empty();
        let mut watches = connection.state().watches_marker();
        let rearms = watches && connection.is_armed(ttl / 2);
        if connection.state().is_in_multi() {
            let is_for_them = !watches || !chosen.exactly_once.is_empty();
            if is_for_them && (has_blocks || !chosen.exactly_once.is_empty()) {
                write.follow_multi();
            } else {
                // The blocks that it was sent for were withdrawn.
                write.push_internal(Expect::Discard, |bytes| bytes.extend_from_slice(DISCARD));
                watches = false;
            }
        }
        if !chosen.exactly_once.is_empty() {
            let marker = connection.marker(prefix).ok()?;
            marker.advance();
            let mut set = Vec::with_capacity(128);
            marker.set(&mut set, ttl);
            write.push_group(chosen.exactly_once.iter().map(Member::block), Some(&set));
            watches = false;
        } else if watches && has_blocks {
            // The register may have expired, which does not concern these blocks.
            write.push_internal(Expect::Unwatch, |bytes| bytes.extend_from_slice(UNWATCH));
            watches = false;
        }
        let slot = |member: &Member<S>| member.request.batch.slot;
        for of_slot in chosen.merged.chunk_by(|one, next| slot(one) == slot(next)) {
            write.push_group(of_slot.iter().map(Member::block), None);
        }
        for member in chosen.alone.iter().chain(&chosen.singles) {
            write.push(member.request.batch.kind, member.request.batch.sent_bytes());
        }
        if begins_register {
            let tag = connection.known_marker().and_then(CommitMarker::tag);
            let tag = self.next_tag.unwrap_or(tag);
            let marker = connection.begin_register(prefix, tag, self.ends_register).ok()?;
            write.push_internal(Expect::Plain, |bytes| marker.set(bytes, ttl));
            write.push_internal(Expect::WatchMarker, |bytes| marker.watch(bytes));
        } else if !watches && (rearms || self.exactly_once > 0) {
            let marker = connection.marker(prefix).ok()?;
            write.push_internal(Expect::WatchMarker, |bytes| marker.watch(bytes));
        }
        Some(())
    }

    /// Whether another register is written behind the blocks.
    fn begins_register(&self) -> bool {
        self.ends_register || (self.exactly_once > 0 && self.next_tag.is_some())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    #[cfg(feature = "tokio")]
    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether exactly-once blocks wait for the next write.
    #[cfg(feature = "tokio")]
    pub(crate) fn has_left_exactly_once(&self) -> bool {
        self.left_exactly_once
    }

    /// Sends the write and reads its replies. Returns how the connection was lost, if it was. `trusted`:
    /// the connection had replied a moment before.
    pub(crate) async fn exchange(
        &mut self,
        connection: &mut Connection<impl Wire>,
        trusted: bool,
        deadline: Deadline,
    ) -> Option<Interruption> {
        (self.sent, self.trusted) = (Some(Instant::now()), trusted);
        let (bytes, expected) = (self.write.bytes(), self.write.expected());
        let mut replies = MergedReplies::new(&self.write);
        let mut take = |expect, reply| replies.take(expect, reply);
        let awaited = expected.iter().map(|(_, count)| u64::from(*count)).sum();
        connection.wire_mut().share_replies(self.write.shared_replies(), awaited);
        let lost = connection.exchange(bytes, expected, deadline, &mut take).await.err();
        let is_misfit = lost.as_ref().is_some_and(|lost| lost.cause.is_misfit());
        self.outcome = Some(replies.finish(lost.as_ref().map(|lost| lost.left), is_misfit));
        lost
    }

    /// Records what the replies show of the connection, and gives each request its response. Returns
    /// the requests of which nothing was applied and which are to be sent again.
    pub(crate) fn settle(
        mut self,
        line: &mut impl Line,
        lost: Option<&Interruption>,
        shapes: &RejectedShapes,
    ) -> Vec<Arc<GroupJob<S>>> {
        let Some(outcome) = self.outcome.take() else { return Vec::new() };
        if let Some(connection) = line.current() {
            self.record(connection, &outcome, lost.is_some());
            connection.keep_scratch(mem::take(&mut self.write).into_bytes());
        }
        // The first such refusal already replaces the connections.
        let changed = outcome.errors.iter().any(|code| line.on_server_error_quiet(code));
        // Nothing was sent, so that another connection may be used.
        let unsent = lost.is_some_and(|lost| lost.left == Some(0));
        // The places are free before the submitters run.
        let members = self.members.iter_mut().zip(&outcome.pieces);
        let settled = members.filter(|(_, piece)| !piece.is_sent_again(unsent));
        let settled = S::give_back(settled.map(|(member, _)| &mut member.request.stay));
        line.context().config.counters.checkouts.add_all(settled);
        let (mut again, mut has_token) = (Vec::new(), false);
        let mut members = mem::take(&mut self.members).into_iter();
        for (nth, (piece, member)) in outcome.pieces.into_iter().zip(members.by_ref()).enumerate() {
            let Member { job, mut request } = member;
            let token = self.token.as_ref().filter(|_| nth < self.exactly_once);
            let response = match piece {
                Piece::Again { .. } if !request.batch.may_send_again() => {
                    self.interrupted(false, ConnectionError::unexpected(TOKEN_WAS_READ))
                }
                Piece::Again { alone } => {
                    let rejected = if alone { ALONE_AFTER } else { 1 };
                    request.rejected_groups = request.rejected_groups.saturating_add(rejected);
                    match job.requeue(request) {
                        Submitter::Waits => again.push(job),
                        submitter => has_token |= submitter == Submitter::HasToken,
                    }
                    continue;
                }
                Piece::Lost { sent: false, .. } if unsent && request.batch.may_send_again() => {
                    if job.requeue(request) == Submitter::Waits {
                        again.push(job);
                    }
                    continue;
                }
                Piece::Lost { sent, doubt } => {
                    let cause = lost.map_or_else(ended, |lost| lost.cause.clone());
                    match token {
                        Some(_) if sent => in_doubt(Some(cause), doubt, token),
                        _ => self.interrupted(sent, cause),
                    }
                }
                Piece::Block(Verdict::Unknown(doubt)) if token.is_some() => {
                    in_doubt(None, doubt, token)
                }
                Piece::Block(verdict) => {
                    if let Verdict::Rejected(rejected) = &verdict
                        && rejected.index.is_some()
                        && !RedirectReply::has_code(rejected.error.code())
                    {
                        shapes.add(request.batch.sent_bytes());
                    }
                    BatchResponse::Block(verdict)
                }
                Piece::Read(value) if is_too_large(&value) => self.interrupted(true, too_large()),
                Piece::Calls(values) if values.iter().any(is_too_large) => {
                    self.interrupted(true, too_large())
                }
                Piece::Read(value) => BatchResponse::Read(value),
                Piece::Calls(values) => BatchResponse::Calls(values),
            };
            has_token |= settle(&job, request, Ok(response)) == Submitter::HasToken;
        }
        // Their drop settles them.
        self.members = members.collect();
        if has_token
            && !self.ends_register
            && let Some(connection) = line.current()
        {
            // A caller resolves this group later, by the register's number.
            connection.end_register();
        }
        if changed {
            line.log_server_change();
        }
        again
    }

    /// The response to a request whose replies did not arrive. `sent`: all its bytes may have been sent.
    fn interrupted(&self, sent: bool, cause: ConnectionError) -> BatchResponse {
        BatchResponse::Interrupted(Interrupted { left: sent, trusted: self.trusted, cause })
    }

    /// Records on the connection what the replies show of its state.
    fn record(
        &self,
        connection: &mut Connection<impl Wire>,
        outcome: &MergedOutcome,
        is_lost: bool,
    ) {
        for (nth, piece) in outcome.pieces.iter().enumerate() {
            match piece {
                Piece::Block(Verdict::Applied(_)) => connection.mark_written(),
                Piece::Calls(values) if values.iter().any(is_success) => connection.mark_written(),
                // The connection watched a key that no block here watched.
                Piece::Block(Verdict::Nil) if nth >= self.exactly_once => {
                    connection.taint(CloseReason::LeftDirty);
                }
                // After a reply that does not fit, the next one may belong to another connection too.
                Piece::Block(Verdict::Unknown(_)) => connection.taint(CloseReason::Protocol),
                _ => {}
            }
        }
        if is_lost {
            return;
        }
        connection.mark_alive();
        let Some(first) = outcome.pieces.first().filter(|_| self.exactly_once > 0) else { return };
        match first {
            Piece::Block(Verdict::Applied(values)) if values.last() != Some(&Value::Okay) => {
                connection.taint(CloseReason::LeftDirty);
            }
            _ if self.begins_register() => {
                connection.set_marker_written(self.sent.filter(|_| !outcome.internal_failed));
            }
            Piece::Block(Verdict::Applied(_)) => connection.set_marker_written(self.sent),
            Piece::Block(Verdict::Nil) => connection.set_marker_written(None),
            _ => {}
        }
    }
}

/// The task or the thread that sends it ended before the replies arrived.
impl<S: Stay> Drop for Group<S> {
    fn drop(&mut self) {
        let sent = self.sent.is_some();
        for (nth, Member { job, request }) in mem::take(&mut self.members).into_iter().enumerate() {
            let token = self.token.as_ref().filter(|_| nth < self.exactly_once);
            let response = match token {
                Some(_) if sent => in_doubt(Some(ended()), Unproven::default(), token),
                _ => self.interrupted(sent, ended()),
            };
            settle(&job, request, Ok(response));
        }
    }
}

/// The response to a request that its caller has given up, and that may have been sent. `token`: of an
/// exactly-once block.
pub(crate) fn unanswered(
    cause: ConnectionError,
    token: Option<&Arc<SharedToken>>,
) -> BatchResponse {
    match token {
        Some(_) => in_doubt(Some(cause), Unproven::default(), token),
        None => BatchResponse::Interrupted(Interrupted { left: true, trusted: true, cause }),
    }
}

fn too_large() -> ConnectionError {
    unreadable(Fault { kind: FaultKind::TooLarge, array: None })
}

fn is_success(value: &Value) -> bool {
    !matches!(value, Value::ServerError(_))
}

fn ended() -> ConnectionError {
    let text = "the caller that sent the request, or its runtime, has ended";
    ConnectionError::new(ConnectionErrorKind::Closed, text)
}

fn in_doubt(
    lost: Option<ConnectionError>,
    doubt: Unproven,
    token: Option<&Arc<SharedToken>>,
) -> BatchResponse {
    match token {
        Some(token) => {
            let token = Arc::clone(token);
            BatchResponse::InDoubt(Box::new(BatchDoubt { doubt, lost, token }))
        }
        None => BatchResponse::Block(Verdict::Unknown(doubt)),
    }
}

/// Hash tag of the registers of blocks with this slot.
pub(crate) fn tag(slot: Option<u16>) -> Option<u32> {
    slot.and_then(slot::tag_of)
}

/// Hash tag of the register of the first exactly-once block that waits; `None`: none waits.
pub(crate) fn next_tag<S>(waiting: &VecDeque<Arc<GroupJob<S>>>) -> Option<Option<u32>> {
    let of_job = |job: &Arc<GroupJob<S>>| {
        job.look(|request| request.batch.exactly_once.then(|| tag(request.batch.slot))).flatten()
    };
    waiting.iter().find_map(of_job)
}

/// The token of the exactly-once blocks that are sent next on the connection.
fn next_token(
    connection: &mut Connection<impl Wire>,
    context: &PoolContext,
    slot: Option<u16>,
) -> Option<Arc<SharedToken>> {
    let (endpoint, prefix) = (&context.endpoint, &context.settings().prefix);
    let marker = connection.marker(prefix).ok()?;
    let (register, number) = (marker.register(), marker.number() + 1);
    let mut token = CommitToken::new(register, number, endpoint.db(), &endpoint.address());
    token.slot = slot;
    Some(token.into())
}

impl<S> Member<S> {
    /// Takes the job's request. `token`: of an exactly-once block; its caller has it in the same step. So
    /// has the cell, if the caller has one.
    fn take(
        job: Arc<GroupJob<S>>,
        token: Option<&Arc<SharedToken>>,
        cell: Option<&TokenCell>,
    ) -> Option<Self> {
        let request = match token.zip(cell) {
            Some((shared, cell)) => {
                let mut request = None;
                cell.fill(&shared.token, || {
                    request = job.take_with(token);
                    request.is_some()
                });
                request?
            }
            None => job.take_with(token)?,
        };
        Some(Self { job, request })
    }

    fn has_cell(&self) -> bool {
        self.request.batch.token.is_some()
    }

    /// The block, and the number of its commands.
    fn block(&self) -> (&[u8], u32) {
        (self.request.batch.sent_bytes(), self.request.batch.kind.commands())
    }
}

impl Needs {
    fn of<S>(request: &GroupRequest<S>, shapes: &RejectedShapes) -> Self {
        let kind = request.batch.kind;
        let is_block = matches!(kind, RequestKind::Block { .. });
        let alone = is_block
            && (request.rejected_groups >= ALONE_AFTER || shapes.has(request.batch.sent_bytes()));
        let exactly_once = is_block && request.batch.exactly_once;
        let cell = if exactly_once { request.batch.token.clone() } else { None };
        let (bytes, slot) = (request.batch.sent_bytes().len(), request.batch.slot);
        Self { kind, bytes, exactly_once, slot, alone, cell }
    }
}

impl<S> Chosen<S> {
    fn new() -> Self {
        Self {
            exactly_once: Vec::new(),
            exactly_once_alone: false,
            merged: Vec::new(),
            alone: Vec::new(),
            singles: Vec::new(),
        }
    }

    fn len(&self) -> usize {
        let all = [&self.exactly_once, &self.merged, &self.alone, &self.singles];
        all.iter().map(|members| members.len()).sum()
    }

    fn fits_exactly_once(&self, alone: bool) -> bool {
        self.exactly_once.is_empty() || !(alone || self.exactly_once_alone)
    }

    /// Adds a member. `waiting`: the number of requests that may follow it.
    fn push(&mut self, member: Member<S>, needs: &Needs, waiting: usize) {
        let members = match needs.kind {
            RequestKind::Block { .. } if needs.exactly_once => {
                self.exactly_once_alone = needs.alone;
                &mut self.exactly_once
            }
            RequestKind::Block { .. } if needs.alone => &mut self.alone,
            RequestKind::Block { .. } => &mut self.merged,
            RequestKind::Read | RequestKind::Calls { .. } => &mut self.singles,
        };
        if members.is_empty() {
            members.reserve(waiting + 1);
        }
        members.push(member);
    }
}
