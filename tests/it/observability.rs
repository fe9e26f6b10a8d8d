//! What the library reports of itself: spans and events, `status()`, warnings with a code place.
//!
//! Never: a key, a value or a password in any of it.

mod listen;
mod locks;
mod secrets;
mod spans;
mod status;
