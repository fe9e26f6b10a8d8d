//! The pooled handle in a cluster: each command goes to the master of its key's slot, follows its
//! redirects, or goes to all masters.

use std::panic::Location;
use std::time::Instant;

use redis::Value;

use crate::error::any::Error;
use crate::error::applied::Applied;
use crate::error::checkout::CheckoutError;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::pool::ask::{Question, ask};
use crate::pool::line::Line;
use crate::pool::redirect_pause;
use crate::pool::router::Router;
use crate::pool::server_pool::ServerPool;
use crate::pooled::refusal::{Refusal, code_and_text, is_confirmed};
use crate::pooled::request::Request;
use crate::protocol::cluster::redirect;
use crate::protocol::cluster::route::{RedirectBudget, Route};
use crate::protocol::command::display_name::display_name;
use crate::protocol::command::fan_out;
use crate::protocol::command::fan_out::{FanOut, ResponsePolicy};
use crate::protocol::command::keys;
use crate::protocol::command::keys::KeySlots;
use crate::protocol::command::reader::CommandReader;
use crate::protocol::command::table::is_read_only;
use crate::protocol::resp::encode::ASKING;
use crate::protocol::server_error::ServerError;

/// One command of a request.
struct Part<'b> {
    bytes: &'b [u8],
    to: To,
    /// It went to all masters, and one of them may have applied it.
    in_part: bool,
    /// A read of its keys, which goes with it after a [doubtful refusal](Refusal::Doubtful).
    read: Option<Vec<u8>>,
}

impl<'b> Part<'b> {
    fn args(&self) -> Vec<&'b [u8]> {
        let args = CommandReader::new(self.bytes).next();
        args.and_then(Result::ok).unwrap_or_default()
    }

    /// Whether a master with this reply may have applied the command.
    fn may_be_applied(&self, policy: ResponsePolicy, reply: &Value) -> bool {
        let args = self.args();
        let (name, sub) = (args.first().copied().unwrap_or_default(), args.get(1).copied());
        match reply {
            _ if policy.is_of_reads() || is_read_only(name, sub) => false,
            Value::ServerError(error) => {
                !ServerError::of_command(name, sub, error).changed_nothing()
            }
            _ => true,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    Any,
    Slot(u16),
    All(ResponsePolicy),
}

/// The replies to commands that went in one write.
struct Exchanged<L> {
    replies: Vec<Value>,
    /// Those to the reads that went with them.
    reads: Vec<Option<Value>>,
    /// `None`: another caller's connection carried the commands.
    line: Option<L>,
}

/// The replies to a request's commands.
pub(crate) struct Responses {
    /// One for each command, in their order.
    pub(crate) replies: Vec<Value>,
    /// The indexes of the commands that went to all masters, and that one of them may have
    /// applied: the error of another one does not prove that they had no effect.
    pub(crate) in_part: Vec<usize>,
}

/// Sends each command to its node. Returns one reply for each command, in their order.
///
/// Dropped before its end, it may have sent any of the commands. A connection that awaits replies
/// is then closed.
pub(crate) async fn request<P: ServerPool>(
    router: &Router<P>,
    place: &'static Location<'static>,
    bytes: &[u8],
    deadline: Instant,
) -> Result<Responses, Error> {
    let parts = parts(bytes)?;
    let mut call = NodeCall { router, place, deadline, replies: vec![None; parts.len()], parts };
    while let Some(first) = call.replies.iter().position(Option::is_none) {
        let to = call.parts.get(first).map_or(To::Any, |part| part.to);
        let with: Vec<_> = call.waiting(|part| part.to == to).collect();
        let sent = match to {
            To::All(policy) => call.everywhere(first, policy).await,
            To::Any => call.batch(Route::default(), with).await,
            To::Slot(slot) => call.batch(Route::to(Some(slot)), with).await,
        };
        sent.map_err(|error| call.error_for_whole(error))?;
    }
    let in_part = call.parts.iter().enumerate().filter(|(_, part)| part.in_part);
    let in_part = in_part.map(|(at, _)| at).collect();
    Ok(Responses { replies: call.replies.into_iter().flatten().collect(), in_part })
}

fn parts(bytes: &[u8]) -> Result<Vec<Part<'_>>, Error> {
    let mut requests = CommandReader::new(bytes);
    let mut parts = Vec::new();
    loop {
        let rest = requests.rest();
        let Some(Ok(args)) = requests.next() else { return Ok(parts) };
        let own = rest.get(..rest.len() - requests.rest().len()).unwrap_or_default();
        let name = || display_name(args.first().copied().unwrap_or_default());
        let to = match keys::slot_of(&args) {
            KeySlots::One(slot) => To::Slot(slot),
            KeySlots::Several(bound, other) => {
                return Err(Error::CrossSlot { command: name(), bound, other });
            }
            // Any node knows the command's key positions and redirects it.
            KeySlots::Unknown => To::Any,
            KeySlots::None => match fan_out::of(&args) {
                FanOut::OneNode => To::Any,
                FanOut::AllMasters(policy) => To::All(policy),
                FanOut::Refused => {
                    return Err(Error::Refused {
                        command: name(),
                        hint: "each node of the cluster replies differently; connect to each",
                    });
                }
            },
        };
        parts.push(Part { bytes: own, to, in_part: false, read: None });
    }
}

struct NodeCall<'b, P: ServerPool> {
    router: &'b Router<P>,
    place: &'static Location<'static>,
    deadline: Instant,
    parts: Vec<Part<'b>>,
    replies: Vec<Option<Value>>,
}

impl<P: ServerPool> NodeCall<'_, P> {
    /// The commands without a reply yet.
    fn waiting(&self, which: impl Fn(&Part<'_>) -> bool) -> impl Iterator<Item = usize> {
        let replies = self.parts.iter().zip(&self.replies).enumerate();
        replies.filter(move |(_, (part, reply))| reply.is_none() && which(part)).map(|(at, _)| at)
    }

    /// Sends these commands along the route, and redirected ones along the next route, and so on.
    async fn batch(&mut self, mut route: Route, mut indexes: Vec<usize>) -> Result<(), Error> {
        let mut budget = RedirectBudget::until(self.deadline);
        loop {
            let mut redirected = Vec::new();
            let (redirect, failed) = match self.exchange(&route, &indexes).await {
                Ok(Exchanged { replies, reads, line }) => {
                    let refused = self.refused(&route, &indexes, (&replies, reads), line).await;
                    let mut redirect = None;
                    for ((at, reply), refused) in indexes.into_iter().zip(replies).zip(refused) {
                        if let (Some(proven), Some((code, text))) = (refused, code_and_text(&reply))
                        {
                            // The slot map is refreshed in any case.
                            if redirect.is_none() || !proven {
                                let next = self.router.redirect_for(&route, code, text).await;
                                redirect = if proven { next } else { redirect };
                            }
                            redirected.extend(proven.then_some(at));
                        }
                        // The reply is final, unless there is time to follow its redirect.
                        self.set_reply(at, Some(reply));
                    }
                    (redirect, None)
                }
                Err(Error::Checkout(error)) => {
                    redirected = indexes;
                    let next = self.router.on_unreachable(&route, &error, self.deadline).await;
                    (next, Some(error))
                }
                Err(error) => return Err(error),
            };
            match redirect {
                Some(redirect)
                    if redirect_pause::try_next::<P::Io>(&mut budget, &redirect).await =>
                {
                    route = redirect.route();
                }
                _ => return failed.map_or(Ok(()), |error| Err(error.into())),
            }
            redirected.iter().for_each(|at| self.set_reply(*at, None));
            indexes = redirected;
        }
    }

    fn set_reply(&mut self, at: usize, reply: Option<Value>) {
        if let Some(place) = self.replies.get_mut(at) {
            *place = reply;
        }
    }

    /// Sends one command to every master.
    async fn everywhere(&mut self, this: usize, policy: ResponsePolicy) -> Result<(), Error> {
        let mut budget = RedirectBudget::until(self.deadline);
        let (mut answers, mut asked) = (Vec::new(), Vec::new());
        loop {
            let mut failed = None;
            for route in self.router.all_masters(self.deadline).await? {
                if asked.contains(&route) {
                    continue;
                }
                match self.exchange(&route, &[this]).await {
                    Ok(Exchanged { replies, .. }) => {
                        if let Some(part) = self.parts.get_mut(this) {
                            let mut replies = replies.iter();
                            part.in_part |= replies.any(|reply| part.may_be_applied(policy, reply));
                        }
                        answers.extend(replies);
                    }
                    Err(Error::Checkout(error)) => {
                        failed = Some((route, error));
                        break;
                    }
                    Err(error) => return Err(error),
                }
                asked.push(route);
            }
            let Some((route, error)) = failed else { break };
            match self.router.on_unreachable(&route, &error, self.deadline).await {
                Some(redirect)
                    if redirect_pause::try_next::<P::Io>(&mut budget, &redirect).await => {}
                _ => return Err(error.into()),
            }
        }
        self.set_reply(this, Some(fan_out::combine(policy, answers)));
        Ok(())
    }

    /// Returns of each reply whether it proves that the node refused the command; `None`: it is the command's
    /// own reply.
    async fn refused(
        &mut self,
        route: &Route,
        indexes: &[usize],
        (replies, answers): (&[Value], Vec<Option<Value>>),
        line: Option<P::Line>,
    ) -> Vec<Option<bool>> {
        let (mut refused, mut unasked, mut reads) = (Vec::new(), Vec::new(), Vec::new());
        for ((at, reply), answer) in indexes.iter().zip(replies).zip(answers) {
            let part = self.parts.get_mut(*at);
            refused.push(
                match part.as_ref().and_then(|part| Refusal::of(&part.args(), reply, route.slot)) {
                    None => None,
                    Some(Refusal::Proven) => Some(true),
                    Some(Refusal::Doubtful { read }) => {
                        if answer.is_none() {
                            unasked.push((refused.len(), reply));
                            reads.extend(route.ask.then_some(ASKING).into_iter().flatten());
                            reads.extend(&read);
                        }
                        if let Some(part) = part {
                            part.read = Some(read);
                        }
                        Some(answer.is_some_and(|answer| is_confirmed(reply, &answer)))
                    }
                },
            );
        }
        let Some(mut line) = line.filter(|_| !unasked.is_empty()) else { return refused };
        let question = Question {
            name: "EXISTS",
            bytes: &reads,
            replies: unasked.len() * if route.ask { 2 } else { 1 },
            read_only: true,
            single: false,
            blocking: None,
        };
        let mut answers = Vec::new();
        let mut take = |nth, value| {
            answers.truncate(nth);
            answers.push(value);
        };
        let budget = line.retry_budget(self.deadline);
        if ask(&mut line, &question, budget, &mut take).await.is_err() {
            return refused;
        }
        if route.ask {
            answers = redirect::all_after_asking(answers);
        }
        for ((nth, reply), answer) in unasked.into_iter().zip(answers) {
            if let Some(refused) = refused.get_mut(nth) {
                *refused = Some(is_confirmed(reply, &answer));
            }
        }
        refused
    }

    /// Sends one write along the route, and reads one reply for each command.
    async fn exchange(
        &self,
        route: &Route,
        indexes: &[usize],
    ) -> Result<Exchanged<P::Line>, Error> {
        let parts = || indexes.iter().filter_map(|at| self.parts.get(*at));
        let commands =
            || parts().flat_map(|part| [Some(part.bytes), part.read.as_deref()]).flatten();
        let (mut bytes, mut count) = (commands().collect::<Vec<_>>().concat(), commands().count());
        let request = Request::parse(&bytes, count, self.place)?;
        if route.ask {
            bytes = commands().flat_map(|command| [ASKING, command]).collect::<Vec<_>>().concat();
            count *= 2;
        }
        let sent = request.ask(self.router, route, (&bytes, count), self.deadline, None).await;
        let (mut values, line) = sent?;
        if route.ask {
            values = redirect::all_after_asking(values);
        }
        let (mut values, mut replies, mut reads) = (values.into_iter(), Vec::new(), Vec::new());
        for part in parts() {
            replies.extend(values.next());
            reads.push(part.read.as_ref().and_then(|_| values.next()));
        }
        Ok(Exchanged { replies, reads, line })
    }

    /// Makes the error apply to the whole request: other commands of it may have been applied, and
    /// the same one by other masters.
    fn error_for_whole(&self, error: Error) -> Error {
        let during = || {
            let first = self.parts.first().map(Part::args).unwrap_or_default();
            display_name(first.first().copied().unwrap_or_default())
        };
        let changed = self.parts.iter().zip(&self.replies).any(|(part, reply)| {
            let parsed = Request::parse(part.bytes, 1, self.place);
            part.in_part || reply.is_some() && parsed.is_ok_and(|request| !request.read_only)
        });
        match error {
            error if !changed => error,
            Error::Lost { during, source, .. } => {
                Error::Lost { during, applied: Applied::Unknown, source }
            }
            Error::Checkout(error) => {
                let source = match error {
                    CheckoutError::Connect { source, .. } => source,
                    other => ConnectionError::new(ConnectionErrorKind::Closed, other.to_string()),
                };
                Error::Lost { during: during(), applied: Applied::Unknown, source }
            }
            error => error,
        }
    }
}
