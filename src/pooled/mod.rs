//! The pooled handle: single commands and pipelines.

pub(crate) mod atomic;
pub(crate) mod error_tag;
pub(crate) mod fan_out;
pub(crate) mod handle;
pub(crate) mod recent_replies;
mod redis_error;
pub(crate) mod refusal;
pub(crate) mod request;
pub(crate) mod send;
pub(crate) mod tag_errors;
