//! What a new connection says first: who it is, which protocol it speaks, which database it wants.
//!
//! Never: shown.

use redis::RedisConnectionInfo;

use crate::protocol::resp::encode::command;

/// Asks whether the server knows EXEC. Where it was renamed, a transaction would be queued, and the
/// error that EXEC is answered with proves nothing.
pub(crate) const KNOWS_EXEC: &[u8] = b"*3\r\n$7\r\nCOMMAND\r\n$4\r\nINFO\r\n$4\r\nEXEC\r\n";

/// What a new connection says first.
pub(crate) struct Hello {
    pub(crate) bytes: Vec<u8>,
    /// Names of the commands, in their order.
    pub(crate) names: Vec<&'static str>,
    /// Replies that must not be refusals.
    pub(crate) needed: u32,
    /// Replies that may be anything: an older server does not know the question.
    pub(crate) unneeded: u32,
}

impl Hello {
    pub(crate) fn new(info: &RedisConnectionInfo) -> Self {
        let mut hello = Self { bytes: Vec::new(), names: Vec::new(), needed: 0, unneeded: 2 };
        let bytes = &mut hello.bytes;
        let (user, password) = (info.username(), info.password());
        if info.protocol().supports_resp3() {
            hello.needed += 1;
            hello.names.push("HELLO");
            command(bytes, &["HELLO", "3"], |args| {
                if let Some(password) = password {
                    args.arg("AUTH").arg(user.unwrap_or("default")).arg(password);
                }
            });
        } else if password.is_some() {
            hello.needed += 1;
            hello.names.push("AUTH");
            auth(bytes, info);
        }
        if info.db() != 0 {
            hello.needed += 1;
            hello.names.push("SELECT");
            command(bytes, &["SELECT"], |args| {
                args.arg(info.db());
            });
        }
        let name = info.lib_name().unwrap_or(env!("CARGO_PKG_NAME"));
        let version = info.lib_ver().unwrap_or(env!("CARGO_PKG_VERSION"));
        if info.skip_set_lib_name() {
            hello.unneeded = 0;
        } else {
            for (what, text) in [("LIB-NAME", name), ("LIB-VER", version)] {
                hello.names.push("CLIENT SETINFO");
                command(bytes, &["CLIENT", "SETINFO", what], |args| {
                    args.arg(text);
                });
            }
        }
        hello
    }
}

/// Who it is.
pub(crate) fn auth(bytes: &mut Vec<u8>, info: &RedisConnectionInfo) {
    command(bytes, &["AUTH"], |args| {
        args.arg(info.username()).arg(info.password());
    });
}
