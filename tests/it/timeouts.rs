//! Every call ends within its timeout: a silent, stopped or absent server, a full one, a network that drops
//! everything.

mod connect;
mod deadlines;
mod silence;
