//! The pool of one server, for callers that are tasks of tokio: lanes, which carry the requests of
//! many callers, and connections that one caller has alone.

pub(crate) mod core;
pub(crate) mod holder;
pub(crate) mod idle;
pub(crate) mod key_queue;
pub(crate) mod lane;
pub(crate) mod lane_line;
pub(crate) mod lane_loop;
pub(crate) mod lanes;
pub(crate) mod line;
pub(crate) mod permits;
pub(crate) mod pool;
pub(crate) mod right;
pub(crate) mod router;
pub(crate) mod waiter;
