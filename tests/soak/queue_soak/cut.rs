//! Where the connection of a group is cut, and what becomes of the bytes behind it.

use fastrand::Rng;
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Proxy, Script, Trigger};
use rediscope_testing::server::Server;

use crate::SOON;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Cut {
    Closed,
    ReplyLost,
    /// The rest arrives after all members were resolved.
    Late,
    /// A part has arrived, and the rest never does.
    Half,
    Never,
}

impl Cut {
    pub(crate) fn any(rng: &mut Rng) -> Self {
        let cuts = [Self::Closed, Self::ReplyLost, Self::Late, Self::Half, Self::Never];
        cuts[rng.usize(..cuts.len())]
    }

    /// `bytes`: the length of the group's write, as a bound.
    pub(crate) fn script(self, bytes: u64, rng: &mut Rng) -> Script {
        let at = Trigger::ClientBytes(rng.u64(1..bytes));
        let (trigger, fault) = match self {
            Self::Closed => (at, Fault::Cut),
            Self::ReplyLost if rng.bool() => (Trigger::BeforeReplyTo("EXEC"), Fault::Cut),
            Self::ReplyLost => (Trigger::InsideReplyTo("EXEC", rng.u64(1..20)), Fault::Cut),
            Self::Late | Self::Half => (at, Fault::HoldRequests),
            Self::Never => (at, Fault::DropRequestTail),
        };
        Script::new().on(trigger, fault).once()
    }

    /// After the members were resolved.
    pub(crate) fn end(self, proxy: &Proxy) {
        match self {
            Self::Late => proxy.release(),
            Self::Half | Self::Never => proxy.cut_all(),
            Self::Closed | Self::ReplyLost => {}
        }
    }
}

/// Waits until every byte that was held has arrived or is lost.
pub(crate) fn wait_for_late_bytes(server: &Server) {
    eventually(SOON, "no connection is left in MULTI", || {
        let clients: String = server.ask(&["CLIENT", "LIST"]);
        !clients.lines().any(|client| {
            client
                .split(' ')
                .filter_map(|field| field.strip_prefix("multi="))
                .any(|multi| multi != "-1")
        })
    });
}

/// The blocks whose key, which holds 1 or nothing, does not fit what was returned for them.
pub(crate) fn wrong<'e>(
    server: &Server,
    ends: impl IntoIterator<Item = &'e (String, bool)>,
) -> Vec<&'e (String, bool)> {
    let ends: Vec<_> = ends.into_iter().collect();
    let mut db = server.connection();
    let mut wrong = Vec::new();
    for chunk in ends.chunks(1_000) {
        let keys: Vec<&str> = chunk.iter().map(|(key, _)| key.as_str()).collect();
        let found: Vec<Option<u64>> = redis::cmd("MGET").arg(keys).query(&mut db).unwrap();
        let pairs = chunk.iter().zip(found);
        let differ = pairs.filter(|((_, applied), found)| *found != applied.then_some(1));
        wrong.extend(differ.map(|(end, _)| *end));
    }
    wrong
}
