//! Bad input: each fails with an error that names it, nothing of it is sent, and nothing is lost. And no error
//! has a key, a value or a password.

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
crate::side::threads_only! {
    mod threads;
}
mod watching;
