//! A recorder that keeps all that it is told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ::metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};

/// A metric's name and labels.
type Name = (String, BTreeMap<String, String>);

#[derive(Default)]
struct Values(Mutex<Vec<f64>>);

impl HistogramFn for Values {
    fn record(&self, value: f64) {
        self.0.lock().unwrap().push(value);
    }
}

/// A recorder that panics at each report.
#[derive(Clone, Copy)]
pub(crate) struct Panics {
    /// A recorder without any state counts as none.
    pub(crate) _state: u8,
}

impl HistogramFn for Panics {
    fn record(&self, _: f64) {
        panic!("the recorder's own");
    }
}

impl CounterFn for Panics {
    fn increment(&self, _: u64) {
        panic!("the recorder's own");
    }

    fn absolute(&self, _: u64) {}
}

impl GaugeFn for Panics {
    fn increment(&self, _: f64) {
        panic!("the recorder's own");
    }

    fn decrement(&self, _: f64) {
        panic!("the recorder's own");
    }

    fn set(&self, _: f64) {}
}

impl Recorder for Panics {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(Arc::new(*self))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(Arc::new(*self))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::new(*self))
    }
}

#[derive(Default)]
struct State {
    units: BTreeMap<String, String>,
    counters: BTreeMap<Name, Arc<AtomicU64>>,
    gauges: BTreeMap<Name, Arc<AtomicU64>>,
    histograms: BTreeMap<Name, Arc<Values>>,
}

/// All that was reported.
#[derive(Clone, Default)]
pub(crate) struct Seen(Arc<Mutex<State>>);

fn name(key: &Key) -> Name {
    let labels = key.labels().map(|label| (label.key().to_owned(), label.value().to_owned()));
    (key.name().to_owned(), labels.collect())
}

impl Seen {
    fn unit(&self, key: &KeyName, unit: Option<Unit>, text: &str) {
        assert!(!text.is_empty(), "{key:?} has no description");
        let unit = unit.unwrap().as_str().to_owned();
        self.0.lock().unwrap().units.insert(key.as_str().to_owned(), unit);
    }

    /// Name, kind, unit, and names of the labels of each metric.
    pub(crate) fn metrics(&self) -> BTreeSet<(String, String, String, Vec<String>)> {
        let state = self.0.lock().unwrap();
        let counters = state.counters.keys().map(|key| ("counter", key));
        let gauges = state.gauges.keys().map(|key| ("gauge", key));
        let histograms = state.histograms.keys().map(|key| ("histogram", key));
        let all = counters.chain(gauges).chain(histograms);
        all.map(|(kind, (name, labels))| {
            let unit = state.units.get(name).cloned().unwrap_or_default();
            (name.clone(), kind.to_owned(), unit, labels.keys().cloned().collect())
        })
        .collect()
    }

    /// The values of a label.
    pub(crate) fn values_of(&self, label: &str) -> BTreeSet<String> {
        let state = self.0.lock().unwrap();
        let keys = state.counters.keys().chain(state.gauges.keys()).chain(state.histograms.keys());
        keys.filter_map(|(_, labels)| labels.get(label).cloned()).collect()
    }

    /// The pool of each series of a metric.
    pub(crate) fn series(&self, name: &str) -> Vec<String> {
        let state = self.0.lock().unwrap();
        let keys = state.counters.keys().chain(state.gauges.keys()).chain(state.histograms.keys());
        let of_metric = keys.filter(|(metric, _)| metric == name);
        of_metric.map(|(_, labels)| labels[super::POOL].clone()).collect()
    }

    pub(crate) fn count(&self, name: &str, pool: &str) -> u64 {
        self.counter(name, &[(super::POOL, pool)])
    }

    pub(crate) fn outcomes(&self, outcome: &str, pool: &str) -> u64 {
        let labels = [(super::POOL, pool), ("rediscope.outcome", outcome)];
        self.counter("rediscope.transaction.outcomes", &labels)
    }

    fn counter(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let state = self.0.lock().unwrap();
        state.counters.get(&key(name, labels)).map_or(0, |value| value.load(Ordering::SeqCst))
    }

    pub(crate) fn level(&self, name: &str, pool: &str) -> i64 {
        self.gauge(name, &[(super::POOL, pool)])
    }

    pub(crate) fn connections(&self, state: &str, pool: &str) -> i64 {
        let labels = [(super::POOL, pool), ("db.client.connection.state", state)];
        self.gauge("db.client.connection.count", &labels)
    }

    fn gauge(&self, name: &str, labels: &[(&str, &str)]) -> i64 {
        let state = self.0.lock().unwrap();
        let value = state.gauges.get(&key(name, labels)).map(|value| value.load(Ordering::SeqCst));
        f64::from_bits(value.unwrap_or_default()) as i64
    }

    pub(crate) fn values(&self, name: &str, pool: &str) -> Vec<f64> {
        let state = self.0.lock().unwrap();
        let values = state.histograms.get(&key(name, &[(super::POOL, pool)]));
        values.map_or_else(Vec::new, |values| values.0.lock().unwrap().clone())
    }
}

fn key(name: &str, labels: &[(&str, &str)]) -> Name {
    let labels = labels.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned()));
    (name.to_owned(), labels.collect())
}

impl Recorder for Seen {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, text: SharedString) {
        self.unit(&key, unit, &text);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, text: SharedString) {
        self.unit(&key, unit, &text);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, text: SharedString) {
        self.unit(&key, unit, &text);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(Arc::clone(self.0.lock().unwrap().counters.entry(name(key)).or_default()))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(Arc::clone(self.0.lock().unwrap().gauges.entry(name(key)).or_default()))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::clone(
            self.0.lock().unwrap().histograms.entry(name(key)).or_default(),
        ))
    }
}
