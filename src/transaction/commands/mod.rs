//! The command table: one trait for each family, one line of documentation for each command.
//!
//! These methods only queue; the reply is read from [`Replies`](crate::Replies).

pub(crate) mod bitfield;
pub(crate) mod bitmaps;
pub(crate) mod geo;
pub(crate) mod geo_search;
pub(crate) mod hashes;
pub(crate) mod hyperloglogs;
pub(crate) mod integer;
pub(crate) mod keys;
pub(crate) mod lists;
pub(crate) mod publish;
pub(crate) mod queue_commands;
pub(crate) mod scripts;
pub(crate) mod sealed;
pub(crate) mod server;
pub(crate) mod sets;
pub(crate) mod sorted_sets;
pub(crate) mod streams;
pub(crate) mod strings;
pub(crate) mod table;
#[cfg(test)]
#[path = "../../../tests/unit/commands.rs"]
mod tests;
pub(crate) mod vectors;

pub use crate::transaction::commands::bitfield::{Bitfield, BitfieldOverflow};
pub use crate::transaction::commands::bitmaps::BitmapCommands;
pub use crate::transaction::commands::geo::GeoCommands;
pub use crate::transaction::commands::geo_search::{GeoCenter, GeoSearch};
pub use crate::transaction::commands::hashes::HashCommands;
pub use crate::transaction::commands::hyperloglogs::HyperLogLogCommands;
pub use crate::transaction::commands::keys::KeyCommands;
pub use crate::transaction::commands::lists::ListCommands;
pub use crate::transaction::commands::publish::PublishCommands;
pub use crate::transaction::commands::queue_commands::QueueCommands;
pub use crate::transaction::commands::scripts::ScriptCommands;
pub use crate::transaction::commands::server::ServerCommands;
pub use crate::transaction::commands::sets::SetCommands;
pub use crate::transaction::commands::sorted_sets::SortedSetCommands;
pub use crate::transaction::commands::streams::StreamCommands;
pub use crate::transaction::commands::strings::StringCommands;
pub use crate::transaction::commands::vectors::VectorCommands;
