//! Routing decisions of a cluster: the node for a call, and the next node after a redirect.

use std::time::{Duration, Instant};

use crate::protocol::cluster::redirect::RedirectReply;
use crate::protocol::cluster::slot_map::NodeAddress;
use crate::protocol::retry::Backoff;
use crate::protocol::server_error::ServerError;

/// The destination of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Route {
    /// `None`: to any node.
    pub(crate) slot: Option<u16>,
    /// Overrides the slot map.
    pub(crate) node: Option<NodeAddress>,
    /// The slot is migrating to the node: ASKING precedes each command or MULTI.
    pub(crate) ask: bool,
}

impl Route {
    pub(crate) fn to(slot: Option<u16>) -> Self {
        Self { slot, ..Self::default() }
    }

    pub(crate) fn to_node(node: NodeAddress) -> Self {
        Self { node: Some(node), ..Self::default() }
    }

    /// The next route after a redirect reply of the node at host `from`. `None`: the reply is about
    /// another slot, because it is the error of a key that the library does not know of.
    pub(crate) fn redirected(&self, reply: &RedirectReply, from: &str) -> Option<Redirect> {
        if let (Some(bound), Some(slot)) = (self.slot, reply.slot())
            && bound != slot
        {
            return None;
        }
        Some(match reply {
            RedirectReply::Moved { slot, .. } => Redirect::Immediately(Self::to(Some(*slot))),
            RedirectReply::Ask { slot, to } => {
                let node = Some(NodeAddress::of(to, from));
                Redirect::Immediately(Self { slot: Some(*slot), node, ask: true })
            }
            RedirectReply::TryAgain => Redirect::AfterDelay(Self::to(self.slot)),
        })
    }
}

/// The next step of a rejected call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Redirect {
    Immediately(Route),
    AfterDelay(Route),
    /// No connection to the node was available; the slot map was refreshed.
    Unreachable(Route),
}

impl Redirect {
    pub(crate) fn route(self) -> Route {
        match self {
            Self::Immediately(route) | Self::AfterDelay(route) | Self::Unreachable(route) => route,
        }
    }
}

/// Redirections followed without delay. Later ones back off, since two nodes may redirect to each
/// other.
const WITHOUT_DELAY: u32 = 8;

/// The first and the longest delay before a redirect is followed.
const DELAYS: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));

/// Limits how long a call follows redirects.
#[derive(Debug)]
pub(crate) struct RedirectBudget {
    deadline: Instant,
    /// Made for the first delay.
    backoff: Option<Backoff>,
    followed: u32,
}

impl RedirectBudget {
    pub(crate) fn until(deadline: Instant) -> Self {
        Self { deadline, backoff: None, followed: 0 }
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The delay before this redirect is followed. `None`: the deadline has passed.
    pub(crate) fn next_delay(&mut self, redirect: &Redirect, now: Instant) -> Option<Duration> {
        if now >= self.deadline {
            return None;
        }
        self.followed += 1;
        if matches!(redirect, Redirect::Immediately(_)) && self.followed <= WITHOUT_DELAY {
            return Some(Duration::ZERO);
        }
        let backoff = self.backoff.get_or_insert_with(|| Backoff::new(DELAYS.0, DELAYS.1));
        Some(backoff.wait().min(self.deadline - now))
    }
}

/// The error when no node serves the slot, according to every node that replied.
pub(crate) fn unserved(slot: Option<u16>) -> ServerError {
    let text = match slot {
        Some(slot) => format!("no node serves slot {slot}"),
        None => "no master is known".to_owned(),
    };
    ServerError::synthetic("CLUSTERDOWN", &text)
}
