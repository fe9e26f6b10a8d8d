//! RESP, the protocol of Redis: commands to bytes, bytes to replies.

pub(crate) mod decode;
pub(crate) mod encode;
pub(crate) mod fields;
pub(crate) mod reply;
