//! Conditions: which hold, what is told where one does not, what travels in one packet, and that
//! what was required was true when it was committed.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a panic with a clear message is how it reports"
)]

mod support;

mod conditions {
    mod forms;
    mod holds;
    mod model;
    mod race;
    mod stage;
    mod terms;
    mod told;
}
