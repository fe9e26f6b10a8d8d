//! The keys of one run: all under one random prefix, all removed at the end.
//!
//! Never: FLUSHALL, on a server that may be somebody's.

use std::error::Error;
use std::time::Duration;

use rediscope::redis::{self, Client, Commands, Connection, RedisResult};

const TIMEOUT: Duration = Duration::from_secs(5);
const CHUNK: usize = 1000;

/// Runs `show` with a prefix of its own, and removes its keys whatever became of it. The first error
/// is the one to tell.
#[allow(dead_code, reason = "some examples keep their keys in another way")]
pub(crate) fn with_prefix(
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
