//! Conditions: which hold, which error is returned if one does not, what travels in one packet, and
//! that what was required was true when it was committed.

pub(crate) mod fixture;
mod forms;
mod met;
mod model;
mod options;
mod race;
mod reported;
