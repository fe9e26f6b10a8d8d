//! The only subscriber of this test program, and what it recorded.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, Once};
use std::thread::{self, ThreadId};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

/// One event, or one span with what was recorded on it later.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    pub(crate) name: String,
    pub(crate) is_span: bool,
    pub(crate) level: Level,
    pub(crate) thread: ThreadId,
    /// Name of the span in which an event was logged.
    pub(crate) within: Option<&'static str>,
    pub(crate) fields: Vec<(String, String)>,
}

impl Recorded {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let mut values = self.fields.iter().filter(|(field, _)| field == name);
        let value = values.next().map(|(_, value)| value.as_str());
        assert!(values.next().is_none(), "{name} was recorded twice: {self:?}");
        value
    }

    pub(crate) fn fields(&self) -> BTreeMap<&str, &str> {
        self.fields.iter().map(|(name, _)| (name.as_str(), self.field(name).unwrap())).collect()
    }
}

pub(crate) static RECORDED: Mutex<Vec<Recorded>> = Mutex::new(Vec::new());

pub(crate) fn recorded() -> MutexGuard<'static, Vec<Recorded>> {
    RECORDED.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// What was recorded since this was made, from this thread or from all of them.
pub(crate) struct Seen {
    from: usize,
    thread: Option<ThreadId>,
}

impl Seen {
    pub(crate) fn from_here() -> Self {
        Self { thread: Some(thread::current().id()), ..Self::everywhere() }
    }

    pub(crate) fn everywhere() -> Self {
        static LISTEN: Once = Once::new();
        LISTEN.call_once(|| {
            let subscriber = tracing_subscriber::registry().with(Listener);
            tracing::subscriber::set_global_default(subscriber).expect("the only subscriber");
        });
        Self { from: recorded().len(), thread: None }
    }

    pub(crate) fn all(&self) -> Vec<Recorded> {
        let mine =
            |recorded: &&Recorded| self.thread.is_none_or(|thread| recorded.thread == thread);
        recorded()[self.from..].iter().filter(mine).cloned().collect()
    }

    pub(crate) fn spans(&self) -> Vec<Recorded> {
        self.all().into_iter().filter(|recorded| recorded.is_span).collect()
    }

    #[track_caller]
    pub(crate) fn only_span(&self) -> Recorded {
        let mut spans = self.spans();
        assert_eq!(spans.len(), 1, "{spans:#?}");
        spans.remove(0)
    }

    pub(crate) fn events(&self) -> Vec<String> {
        self.all()
            .into_iter()
            .filter(|recorded| !recorded.is_span)
            .map(|event| event.name)
            .collect()
    }

    pub(crate) fn named(&self, name: &str) -> Vec<Recorded> {
        self.all()
            .into_iter()
            .filter(|recorded| !recorded.is_span && recorded.name == name)
            .collect()
    }

    /// The first of that name.
    #[track_caller]
    pub(crate) fn event(&self, name: &str) -> Recorded {
        let found = self.named(name).into_iter().next();
        found.unwrap_or_else(|| panic!("no event {name:?} in {:#?}", self.all()))
    }

    pub(crate) fn all_in(&self, span: &str) -> bool {
        self.all().iter().all(|recorded| recorded.is_span || recorded.within == Some(span))
    }
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all()).finish()
    }
}

pub(crate) struct Listener;

/// Index of a span in the records; its own number is given to another one when it is closed.
pub(crate) struct LoggedPlace(usize);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Listener {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let metadata = attributes.metadata();
        let mut recorded = recorded();
        let span = context.span(id).expect("a span that is new");
        span.extensions_mut().insert(LoggedPlace(recorded.len()));
        recorded.push(Recorded {
            name: metadata.name().to_owned(),
            is_span: true,
            level: *metadata.level(),
            thread: thread::current().id(),
            within: None,
            fields: fields.0,
        });
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        values.record(&mut fields);
        let span = context.span(id).expect("a span that is open");
        let place = span.extensions().get::<LoggedPlace>().map(|place| place.0);
        recorded()[place.expect("a span that was seen")].fields.extend(fields.0);
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        if !event.metadata().target().starts_with("rediscope") {
            return;
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        let message = fields.0.iter().position(|(name, _)| name == "message");
        let name = message.map(|at| fields.0.remove(at).1).unwrap_or_default();
        recorded().push(Recorded {
            name,
            is_span: false,
            level: *event.metadata().level(),
            thread: thread::current().id(),
            within: context.event_span(event).map(|span| span.name()),
            fields: fields.0,
        });
    }
}

#[derive(Default)]
pub(crate) struct Fields(Vec<(String, String)>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push((field.name().to_owned(), format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push((field.name().to_owned(), value.to_owned()));
    }
}
