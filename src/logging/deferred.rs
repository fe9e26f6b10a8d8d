//! Log events that wait until their writer holds nothing: a log belongs to the user, and may use
//! the session manager itself.
//!
//! A call's events are written after its connection was returned. A thread of its own writes the
//! events of a session manager's other threads. Meanwhile these open connections and reclaim
//! scopes. No event is written while its writer holds a connection, a permit or a mutex.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use tracing::level_filters::LevelFilter;
use tracing::{Level, Span};

use crate::sync::lock;
use crate::text::opaque_debug;

type Event = Box<dyn FnOnce() + Send>;

/// Maximum number of waiting events in one place; further ones are dropped.
const MOST: usize = 256;

thread_local! {
    /// Events from deep below the caller, on its thread.
    static LEFT: RefCell<Vec<Event>> = const { RefCell::new(Vec::new()) };
}

/// Leaves an event to the code that returns the connection on this thread.
pub(crate) fn defer(level: Level, event: impl FnOnce() + Send + 'static) {
    if level <= LevelFilter::current() {
        let event = within(event);
        let _: Result<(), _> = LEFT.try_with(|left| left.borrow_mut().push(event));
    }
}

/// Binds the event to the current span.
fn within(event: impl FnOnce() + Send + 'static) -> Event {
    let (span, mut event) = (Span::current(), Some(event));
    Box::new(move || in_span(&span, &mut || event.take().map_or((), |event| event())))
}

/// Entering a span is much code, and is not to be compiled for each event.
#[inline(never)]
fn in_span(span: &Span, event: &mut dyn FnMut()) {
    span.in_scope(event);
}

/// The events of one connection's caller, in their order.
#[derive(Default)]
pub(crate) struct DeferredEvents {
    /// `None` before the first event. Boxed, because each checkout has this field.
    #[expect(
        clippy::box_collection,
        reason = "a checkout is moved often, and rarely has an event"
    )]
    events: Option<Box<Vec<Event>>>,
}

impl DeferredEvents {
    pub(crate) fn add(&mut self, level: Level, event: impl FnOnce() + Send + 'static) {
        if level > LevelFilter::current() {
            return;
        }
        let events = self.events.get_or_insert_default();
        if events.len() < MOST {
            events.push(within(event));
        }
    }

    /// Takes the events that were left on this thread.
    pub(crate) fn collect(&mut self) {
        if LevelFilter::current() == LevelFilter::OFF {
            return;
        }
        let _: Result<(), _> = LEFT.try_with(|left| {
            if let Ok(mut left) = left.try_borrow_mut()
                && !left.is_empty()
            {
                self.events.get_or_insert_default().append(&mut left);
            }
        });
    }

    /// Writes the events, now that nothing is held.
    pub(crate) fn write(&mut self) {
        for event in self.take() {
            match std::thread::panicking() {
                // A second panic would end the process.
                true => drop(catch_unwind(AssertUnwindSafe(event))),
                false => event(),
            }
        }
    }

    fn take(&mut self) -> impl Iterator<Item = Event> + use<> {
        self.events.take().into_iter().flat_map(|events| *events)
    }

    /// Passes the events to the log thread.
    pub(crate) fn send_to(&mut self, log_thread: &Arc<LogThread>) {
        self.take().for_each(|event| log_thread.push(event));
    }
}

/// Writes the events of a session manager's own threads, on a thread that ends when all are written.
#[derive(Default)]
pub(crate) struct LogThread {
    state: Mutex<LogState>,
}

#[derive(Default)]
struct LogState {
    events: VecDeque<Event>,
    running: bool,
}

impl LogThread {
    pub(crate) fn log(self: &Arc<Self>, level: Level, event: impl FnOnce() + Send + 'static) {
        if level <= LevelFilter::current() {
            self.push(within(event));
        }
    }

    fn push(self: &Arc<Self>, event: Event) {
        let mut state = lock(&self.state);
        if state.events.len() < MOST {
            state.events.push_back(event);
        }
        if !state.running {
            let log_thread = Arc::clone(self);
            let thread = std::thread::Builder::new().name("rediscope-log".to_owned());
            // Without a thread the events wait for the next one that can be started.
            state.running = thread.spawn(move || log_thread.run()).is_ok();
        }
    }

    fn run(&self) {
        loop {
            let mut state = lock(&self.state);
            let Some(event) = state.events.pop_front() else {
                state.running = false;
                return;
            };
            drop(state);
            let _: std::thread::Result<()> = catch_unwind(AssertUnwindSafe(event));
        }
    }
}

impl fmt::Debug for DeferredEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} events", self.events.as_ref().map_or(0, |events| events.len()))
    }
}

opaque_debug!(LogThread);
