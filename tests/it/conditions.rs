//! Conditions: which hold, which error is returned if one does not, what one write holds, and that each
//! condition was true at the commit.

pub(crate) mod fixture;
mod forms;
mod met;
mod model;
mod options;
mod race;
mod reported;
