//! What callers that wait for a connection leave with their places: blocks that are merged, watches that travel behind the EXEC of
//! another caller, and watches of one hot key that follow each other. Their connection is cut at a random byte, and
//! their replies are compared with a model.
//!
//! ```text
//! cargo test --test soak -- --nocapture queue_soak::
//! REDISCOPE_QUEUE_CUTS=100000 REDISCOPE_QUEUE_MODEL=10000000 REDISCOPE_SOAK_SEED=7 \
//!     cargo test --release --test soak -- --nocapture queue_soak::
//! ```
//!
//! With `--features tokio` the same name runs those of tasks as well, from one text. The seed decides what is sent and what is
//! cut. What runs at the same time depends on the threads.
//!
//! Guarantee: exactly-once, grouped, pools

pub(crate) mod block_model;
pub(crate) mod cut;
mod cuts;
mod replies;
pub(crate) mod worker;

use super::side;
