//! Conditions: which hold, what is told where one does not, what travels in one packet, and that
//! what was required was true when it was committed.

mod forms;
mod holds;
mod model;
mod race;
mod stage;
mod terms;
mod told;
