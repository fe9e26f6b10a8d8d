//! RESP, the protocol of Redis: commands to bytes, bytes to replies.

pub(crate) mod decode;
pub(crate) mod encode;
#[cfg(any(feature = "cluster", feature = "sentinel"))]
pub(crate) mod fields;
pub(crate) mod reply;
