//! What the library reports of itself: spans and events, `status()`, warnings with a code place.
//!
//! No key, value or password is in any of it.

mod listen;
mod locks;
mod secrets;
#[cfg(feature = "serde")]
mod serialized;
mod spans;
mod status;
