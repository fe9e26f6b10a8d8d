//! Asks the server what became of a transaction whose answer was lost.
//!
//! It asks on a connection of its own, one for the whole manager, which is open while somebody
//! asks: a doubt is never kept waiting by the pool that it came from.
//!
//! Never: an answer by something that is missing. Never: a wait past the caller's time.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use scopeguard::defer;

use crate::config::Settings;
use crate::connection::checkout::{Gate, Refused};
use crate::connection::deadline::Deadline;
use crate::connection::link::Link;
use crate::connection::lock;
use crate::connection::manager::{self, Health, Purpose};
use crate::error::{
    CommitToken, LinkError, LinkErrorKind, Resolution, Resolver, ServerError, Unresolved,
};
use crate::topology::Endpoint;
use crate::wire::fence;
use crate::wire::state::Expect;

/// The longest pause before a server that could not be asked is asked again.
const PAUSE: Duration = Duration::from_millis(100);

/// Asks the server what became of a transaction.
pub(crate) struct Asker {
    endpoint: Endpoint,
    settings: Arc<Settings>,
    health: Arc<Health>,
    gate: Gate<(), ()>,
    link: Mutex<Option<Link>>,
}

impl Asker {
    pub(crate) fn new(endpoint: Endpoint, settings: Arc<Settings>, health: Arc<Health>) -> Self {
        Self { endpoint, settings, health, gate: Gate::new(1), link: Mutex::new(None) }
    }

    /// Whoever asks from now on is told that the session manager is closed.
    pub(crate) fn close(&self) {
        self.gate.close();
    }

    fn ask(&self, token: &CommitToken, deadline: Instant) -> Result<bool, Unresolved> {
        let here = self.endpoint.db();
        if token.db != here {
            return Err(Unresolved::OtherDatabase { token: token.db, here });
        }
        let slot = self.gate.acquire(deadline, |_| Ok::<(), ()>(())).map_err(not_asked)?;
        defer! {
            // Nobody else wants it: it is not kept for the next time.
            if self.gate.waiting() == 0 {
                drop(lock(&self.link).take());
            }
            self.gate.release(slot);
        }
        let mut pause = PAUSE / 16;
        loop {
            let kept = lock(&self.link).take();
            let was_kept = kept.is_some();
            let asked = self.ask_on(kept, token, deadline);
            let passing = match &asked {
                Err(Unresolved::Unreachable(error)) => error.is_passing(),
                Err(Unresolved::Refused(error)) => answers_soon(error),
                _ => false,
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if !passing || left.is_zero() {
                return asked;
            }
            // A connection that died while it was kept says nothing of the server.
            if !was_kept {
                std::thread::sleep(pause.min(left));
                pause = PAUSE.min(pause * 2);
            }
        }
    }

    fn ask_on(
        &self,
        kept: Option<Link>,
        token: &CommitToken,
        deadline: Instant,
    ) -> Result<bool, Unresolved> {
        let unreachable = Unresolved::Unreachable;
        let mut link = match kept {
            Some(link) => link,
            None => manager::open(&self.endpoint, &self.settings, Purpose::Pooled, 0)
                .map_err(unreachable)?,
        };
        let limit = Deadline::after(self.settings.response_timeout).capped(deadline);
        let question = fence::question(&token.register, self.settings.register_ttl);
        link.send(&question, &[(Expect::Plain, 2)], limit).map_err(unreachable)?;
        let touched = link.value(limit).map_err(unreachable)?;
        let found = link.value(limit).map_err(unreachable)?;
        *lock(&self.link) = Some(link);
        fence::applied(token.number, &touched, &found)
    }
}

// What it holds is judged by its own state after a panic, whichever locks it is built with.
impl UnwindSafe for Asker {}
impl RefUnwindSafe for Asker {}

impl Resolver for Asker {
    fn resolve(&self, token: &CommitToken, within: Option<Duration>) -> Resolution {
        let within = within.unwrap_or(self.settings.checkout_timeout);
        let now = Instant::now();
        // Past the end of the clock there is no deadline; a day is as good.
        let deadline = now.checked_add(within).unwrap_or(now + Duration::from_secs(24 * 60 * 60));
        let resolution = match self.ask(token, deadline) {
            Ok(true) => Resolution::Committed,
            Ok(false) => Resolution::NotCommitted,
            Err(why) => Resolution::StillUnknown { why },
        };
        let counters = &self.health.counters;
        match &resolution {
            Resolution::Committed => counters.resolved_committed.add(),
            Resolution::NotCommitted => counters.resolved_not_committed.add(),
            Resolution::StillUnknown { .. } => counters.unresolved.add(),
        }
        tracing::debug!(?resolution, waited = ?now.elapsed(), "resolve");
        resolution
    }
}

/// Whether the server says that it will be able to tell in a moment.
fn answers_soon(error: &ServerError) -> bool {
    matches!(error.code(), "LOADING" | "BUSY" | "TRYAGAIN" | "CLUSTERDOWN" | "MASTERDOWN")
}

fn not_asked(refused: Refused<()>) -> Unresolved {
    Unresolved::Unreachable(match refused {
        Refused::Closed => LinkError::new(LinkErrorKind::Closed, "the session manager is closed"),
        _ => LinkError::timed_out("others were asking all the time"),
    })
}

impl fmt::Debug for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asker").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}
