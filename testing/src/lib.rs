#![doc = include_str!("../README.md")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a panic with a clear message is how it reports"
)]

// What follows is for rediscope's own suites, and may change in any version.

#[cfg(feature = "harness")]
#[doc(hidden)]
pub mod cluster;
#[cfg(feature = "harness")]
#[doc(hidden)]
pub mod front;
#[cfg(feature = "harness")]
mod harness;
#[cfg(feature = "harness")]
#[doc(hidden)]
pub mod process;
#[cfg(feature = "harness")]
#[doc(hidden)]
pub mod program;
#[doc(hidden)]
pub mod proxy;
#[cfg(feature = "harness")]
#[doc(hidden)]
pub mod sentinel;
#[cfg(feature = "harness")]
#[doc(hidden)]
pub mod server;
#[cfg(feature = "harness")]
#[doc(hidden)]
pub mod soak;
#[cfg(feature = "harness")]
#[doc(hidden)]
pub mod tasks;
#[cfg(feature = "harness")]
#[doc(hidden)]
pub mod tls;
#[cfg(feature = "harness")]
#[doc(hidden)]
pub mod unresponsive_port;

#[cfg(feature = "harness")]
#[doc(hidden)]
pub use harness::*;

// And this is the crate.

mod faults;
mod home;
mod poll;
mod test_server;

pub use faults::Faults;
pub use poll::{eventually, try_for};
pub use proxy::{Fault, Trigger};
pub use test_server::{StartError, TestServer};
