//! The keys of one run: all under one random prefix, all removed at the end.
//!
//! Never: FLUSHALL, since the server may hold other data.

use std::error::Error;
use std::time::Duration;

use rediscope::redis::{self, Client, Commands, Connection, RedisResult};

const TIMEOUT: Duration = Duration::from_secs(5);
/// Keys read or removed by one command.
const CHUNK: usize = 1000;

/// Runs `show` with the server's URL and a new prefix, then removes the prefix's keys.
///
/// # Errors
/// The error of `show`, else that of the removal.
pub fn with_prefix(
    name: &str,
    show: impl FnOnce(&str, &str) -> Result<(), Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    let url = std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1/".to_owned());
    let prefix = unique_prefix(name);
    let shown = show(&url, &prefix);
    let removed = remove_all(&url, &prefix);
    shown?;
    removed?;
    Ok(())
}

/// A prefix that no other run has.
pub fn unique_prefix(name: &str) -> String {
    format!("{name}:{:016x}:", fastrand::u64(..))
}

/// A connection that the library has no part in, to check what it did.
///
/// # Errors
/// The server cannot be reached.
pub fn connect(url: &str) -> RedisResult<Connection> {
    let connection = Client::open(url)?.get_connection_with_timeout(TIMEOUT)?;
    connection.set_read_timeout(Some(TIMEOUT))?;
    connection.set_write_timeout(Some(TIMEOUT))?;
    Ok(connection)
}

/// Removes every key that begins with `prefix`, and returns their number.
///
/// # Errors
/// The server cannot be reached or rejects a command.
pub fn remove_all(url: &str, prefix: &str) -> RedisResult<usize> {
    let mut connection = connect(url)?;
    let options = redis::ScanOptions::default().with_pattern(format!("{prefix}*"));
    let keys: Vec<String> =
        connection.scan_options(options.with_count(CHUNK))?.collect::<RedisResult<_>>()?;
    for chunk in keys.chunks(CHUNK) {
        // UNLINK frees memory in the background; DEL would delay the server's other clients.
        connection.unlink::<_, ()>(chunk)?;
    }
    Ok(keys.len())
}
