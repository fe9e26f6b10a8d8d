//! The queries to sentinels of callers that are threads, on connections of redis-rs.

use std::future::ready;
use std::net::Shutdown;
use std::time::{Duration, Instant};

use crate::connection::connect::Server;
use crate::connection::sentinel::client::LEAST;
use crate::connection::sentinel::queries::{MasterConnection, SentinelQueries};
use crate::connection::sentinel::single_flight::SingleFlight;
use crate::error::connection::ConnectionError;
use crate::process::sockets::OwnSocket;
use crate::protocol::sentinel::{ANSWERS, MasterReport, parse, question};
use crate::settings::settings::Settings;

/// The callers are threads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockingQueries;

impl SentinelQueries for BlockingQueries {
    fn query(
        sentinel: &Server,
        _: &Settings,
        name: &str,
        timeout: Duration,
    ) -> impl Future<Output = Result<MasterReport, ConnectionError>> + Send {
        ready(query(sentinel, name, timeout))
    }

    fn wait_for_query(queries: &SingleFlight, until: Instant) -> impl Future<Output = ()> + Send {
        queries.wait(until);
        ready(())
    }
}

impl MasterConnection for OwnSocket {
    fn end(&self) -> bool {
        // The shutdown fails if the other side was faster.
        self.shutdown(Shutdown::Both).is_ok()
    }
}

fn query(
    sentinel: &Server,
    name: &str,
    timeout: Duration,
) -> Result<MasterReport, ConnectionError> {
    let until = Instant::now() + timeout;
    let mut connection = sentinel.client(sentinel.auth_info(), timeout)?;
    let bytes = question(name);
    let mut asked = || {
        let least = LEAST.min(timeout);
        let left = || until.saturating_duration_since(Instant::now()).max(least);
        connection.set_write_timeout(Some(left()))?;
        connection.send_packed_command(&bytes)?;
        let mut answers = Vec::with_capacity(ANSWERS);
        for _ in 0..ANSWERS {
            connection.set_read_timeout(Some(left()))?;
            answers.push(connection.recv_response()?);
        }
        Ok(answers)
    };
    let answers = asked().map_err(|error: redis::RedisError| ConnectionError::of(&error))?;
    Ok(parse(&answers)?)
}
