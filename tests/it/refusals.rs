//! Bad input: each is told with an error that says what it is, nothing of it is sent, and nothing
//! is lost by it. And what errors never say: keys, values and passwords.

pub(crate) mod fixture;

mod arguments;
mod commands;
mod floats;
mod handles;
mod hints;
mod limits;
mod messages;
mod secrets;
mod settings;
mod threads;
mod watching;
