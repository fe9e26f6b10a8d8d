//! Records, from the crate's events, whether a thread that waits for a lock would receive its wakeup.

use std::cell::Cell;
use std::fmt::Debug;
use std::sync::Once;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

thread_local! {
    static LIVE: Cell<Option<bool>> = const { Cell::new(None) };
}

/// From here on.
pub(crate) fn begin() {
    static LISTEN: Once = Once::new();
    LISTEN.call_once(|| {
        tracing::subscriber::set_global_default(Listener).expect("the only subscriber");
    });
}

/// Whether this thread's last wait since the last call was with a subscription; `None` if it did not
/// wait. Without one, the server had not yet confirmed it.
pub(crate) fn waited_subscribed() -> Option<bool> {
    LIVE.take()
}

struct Listener;

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && metadata.target() == "rediscope::lock::acquire"
    }

    fn event(&self, event: &Event<'_>) {
        event.record(&mut Live);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// Of the event `lock wait` the field `live`; no other event has one.
struct Live;

impl Visit for Live {
    fn record_bool(&mut self, field: &Field, value: bool) {
        if field.name() == "live" {
            LIVE.set(Some(value));
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn Debug) {}
}
