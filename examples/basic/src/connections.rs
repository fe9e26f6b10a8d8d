//! The server's connections, as a program counts its own among them.

use std::time::{Duration, Instant};

use rediscope::redis::{self, Connection, RedisResult};

/// Maximum time until the server has removed closed connections from its list.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Number of the server's connections.
///
/// # Errors
/// The error of `CLIENT LIST`.
pub fn count(admin: &mut Connection) -> RedisResult<usize> {
    let list: String = redis::cmd("CLIENT").arg("LIST").query(admin)?;
    Ok(list.lines().count())
}

/// Number of connections besides the `others`, as soon as it is at most `limit`: the server lists a
/// closed one for a moment.
///
/// # Errors
/// The error of `CLIENT LIST`.
pub fn at_most(admin: &mut Connection, others: usize, limit: usize) -> RedisResult<usize> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let ours = count(admin)?.saturating_sub(others);
        if ours <= limit || Instant::now() > deadline {
            return Ok(ours);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
