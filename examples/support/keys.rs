//! The keys of one run: all under one random prefix, all removed at the end.
//!
//! Never: FLUSHALL, on a server that may be somebody's.

use std::time::Duration;

use rediscope::redis::{self, Client, Commands, Connection, RedisResult};

const TIMEOUT: Duration = Duration::from_secs(5);
const CHUNK: usize = 1000;

/// A prefix that no other run has.
pub(crate) fn unique_prefix(name: &str) -> String {
    format!("{name}:{:016x}:", fastrand::u64(..))
}

/// A connection beside the library, to look at what the library did.
pub(crate) fn connect(url: &str) -> RedisResult<Connection> {
    let connection = Client::open(url)?.get_connection_with_timeout(TIMEOUT)?;
    connection.set_read_timeout(Some(TIMEOUT))?;
    connection.set_write_timeout(Some(TIMEOUT))?;
    Ok(connection)
}

/// Removes every key that begins with `prefix`, and says how many those were.
pub(crate) fn remove_all(url: &str, prefix: &str) -> RedisResult<usize> {
    let mut connection = connect(url)?;
    let options = redis::ScanOptions::default().with_pattern(format!("{prefix}*"));
    let keys: Vec<String> =
        connection.scan_options(options.with_count(CHUNK))?.collect::<RedisResult<_>>()?;
    for chunk in keys.chunks(CHUNK) {
        // In the background on the server's side, where DEL would hold up everybody else.
        connection.unlink::<_, ()>(chunk)?;
    }
    Ok(keys.len())
}
