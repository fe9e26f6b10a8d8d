//! The first bytes of a new connection: protocol version, credentials, database, client name.
//!
//! They hold a password, so they have no `Debug`.

use redis::RedisConnectionInfo;

use crate::protocol::resp::encode::command;

/// The first bytes of a new connection.
pub(crate) struct Handshake {
    pub(crate) bytes: Vec<u8>,
    /// Names of the commands in their order.
    pub(crate) commands: Vec<&'static str>,
    /// Number of replies that must not be errors.
    pub(crate) required: u32,
    /// Number of further replies that may be errors, because older servers do not have the command.
    pub(crate) optional: u32,
}

impl Handshake {
    pub(crate) fn new(info: &RedisConnectionInfo) -> Self {
        let mut hello = Self { bytes: Vec::new(), commands: Vec::new(), required: 0, optional: 2 };
        let bytes = &mut hello.bytes;
        let (user, password) = (info.username(), info.password());
        if info.protocol().supports_resp3() {
            hello.required += 1;
            hello.commands.push("HELLO");
            command(bytes, &["HELLO", "3"], |args| {
                if let Some(password) = password {
                    args.arg("AUTH").arg(user.unwrap_or("default")).arg(password);
                }
            });
        } else if password.is_some() {
            hello.required += 1;
            hello.commands.push("AUTH");
            auth(bytes, info);
        }
        if info.db() != 0 {
            hello.required += 1;
            hello.commands.push("SELECT");
            command(bytes, &["SELECT"], |args| {
                args.arg(info.db());
            });
        }
        let name = info.lib_name().unwrap_or(env!("CARGO_PKG_NAME"));
        let version = info.lib_ver().unwrap_or(env!("CARGO_PKG_VERSION"));
        if info.skip_set_lib_name() {
            hello.optional = 0;
        } else {
            for (what, text) in [("LIB-NAME", name), ("LIB-VER", version)] {
                hello.commands.push("CLIENT SETINFO");
                command(bytes, &["CLIENT", "SETINFO", what], |args| {
                    args.arg(text);
                });
            }
        }
        hello
    }
}

/// Appends AUTH.
pub(crate) fn auth(bytes: &mut Vec<u8>, info: &RedisConnectionInfo) {
    command(bytes, &["AUTH"], |args| {
        args.arg(info.username()).arg(info.password());
    });
}
