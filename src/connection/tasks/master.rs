//! The master that sentinels report, for callers that are tasks: the queries, and the task of each
//! runtime that watches for a failover.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{ProtocolVersion, RedisConnectionInfo as AuthInfo, Value};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use crate::connection::connect::Server;
use crate::connection::connection::{Connection, Interruption};
use crate::connection::deadline::Deadline;
use crate::connection::endpoint::Endpoint;
use crate::connection::handshake::{OpenOptions, shake_hands};
use crate::connection::login::Login;
use crate::connection::sentinel::client::{FRESH, SentinelClient};
use crate::connection::sentinel::queries::SentinelQueries;
use crate::connection::sentinel::single_flight::SingleFlight;
use crate::connection::sentinel::watcher::{CHANNEL, TICK};
use crate::connection::tasks::connect::connect;
use crate::connection::tasks::wire::{TaskWire, pair};
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::protocol::connection_state::Expect;
use crate::protocol::handshake::Purpose;
use crate::protocol::resp::encode::{self, words};
use crate::protocol::resp::reply::Reply;
use crate::protocol::sentinel::{ANSWERS, MasterReport, parse, question};
use crate::protocol::server_error::ServerError;
use crate::settings::settings::Settings;
use crate::sync::timer::until;

/// Time after which a subscription without a message is replaced. A sentinel that is silent for good
/// delays the report of a failover by [`FRESH`] at most: the queries go on beside it.
const SUBSCRIBED: Duration = Duration::from_secs(10);

/// The callers are tasks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TaskQueries;

impl SentinelQueries for TaskQueries {
    async fn query(
        sentinel: &Server,
        settings: &Settings,
        name: &str,
        timeout: Duration,
    ) -> Result<MasterReport, ConnectionError> {
        let deadline = Deadline::after(timeout);
        let auth = sentinel.auth_info().clone();
        let mut connection = open(sentinel, settings, auth, deadline).await?;
        let answers = connection.ask_all(&question(name), ANSWERS, deadline).await?;
        Ok(parse(&answers)?)
    }

    async fn wait_for_query(queries: &SingleFlight, until: Instant) {
        queries.wait_in_task(until).await;
    }
}

/// Returns the server that connections lead to now, and the time left to connect to it. Behind
/// sentinels, the runtime of the caller watches for a failover from now on.
pub(super) async fn server(
    endpoint: &Endpoint,
    timeout: Duration,
) -> Result<(Arc<Server>, Duration), ConnectionError> {
    if let Some(master) = endpoint.sentinels() {
        master.watch_in_task(&Handle::current(), watch);
    }
    endpoint.server_within::<TaskQueries>(timeout).await
}

/// Opens a connection to a sentinel. Its drop closes the connection.
async fn open(
    sentinel: &Server,
    settings: &Settings,
    auth: AuthInfo,
    deadline: Deadline,
) -> Result<Connection<TaskWire>, ConnectionError> {
    let socket = connect(sentinel, deadline.at().saturating_duration_since(Instant::now())).await?;
    let runtime = Handle::current();
    let in_clear = !socket.has_tls() && sentinel.host_and_port().1 != 0;
    let (wire, task) = pair(socket, runtime.id());
    let _: AbortHandle = settings.tasks.spawn(&runtime, task);
    let options =
        OpenOptions { purpose: Purpose::Pooled, multi_apart: false, generation: 0, deadline: None };
    let login = Login { auth, version: 0 };
    let endpoint = Endpoint::of_sentinel(sentinel);
    shake_hands(&endpoint, settings, options, (login, wire, in_clear), deadline).await
}

/// Receives failover messages from one sentinel after the other, and also queries each second.
async fn watch(client: Arc<SentinelClient>) {
    for sentinel in client.sentinels.iter().cycle() {
        let next_try = Instant::now() + TICK;
        refresh(&client).await;
        if let Err(error) = listen(&client, sentinel).await {
            tracing::debug!(sentinel = sentinel.address(), %error, "not subscribed to failovers");
        }
        let _: Option<()> = until(next_try, std::future::pending()).await;
    }
}

/// Queries the sentinels if the last report is no longer fresh.
async fn refresh(client: &SentinelClient) {
    let latest = Instant::now() + client.settings.connect_timeout;
    if let Err(error) = client.master::<TaskQueries>(latest).await {
        tracing::debug!(master = %client.name, %error, "the sentinels report no master");
    }
}

/// Waits for a message, and goes on to query each second until then.
async fn listen(client: &SentinelClient, sentinel: &Server) -> Result<(), ConnectionError> {
    let message = message(sentinel, &client.settings, client.query_timeout);
    let mut message = pin!(message);
    loop {
        match until(Instant::now() + FRESH, message.as_mut()).await {
            Some(Ok(true)) => {
                client.invalidate();
                return Ok(());
            }
            Some(Ok(false)) => return Ok(()),
            Some(Err(error)) => return Err(error),
            None => refresh(client).await,
        }
    }
}

/// Subscribes to failover messages, and returns true when one arrives, or false after a time without
/// one.
async fn message(
    sentinel: &Server,
    settings: &Settings,
    timeout: Duration,
) -> Result<bool, ConnectionError> {
    // In this protocol a message is a reply like any other.
    let auth = sentinel.auth_info().clone().set_protocol(ProtocolVersion::RESP2);
    let mut connection = open(sentinel, settings, auth, Deadline::after(timeout)).await?;
    let mut bytes = Vec::new();
    encode::command(&mut bytes, words!("SUBSCRIBE", CHANNEL), |_| {});
    let (mut refused, mut replies) = (None, 0);
    let mut take = |_, reply: Reply| {
        replies += 1;
        if let Reply::Value(Value::ServerError(error)) = reply {
            refused = Some(ServerError::from_reply(&error, false));
        }
    };
    // The reply to SUBSCRIBE, and the message.
    let (expected, deadline) = ([(Expect::Plain, 2)], Deadline::after(SUBSCRIBED));
    match connection.exchange(&bytes, &expected, deadline, &mut take).await {
        Ok(()) => Ok(true),
        // More than one message has arrived at once.
        Err(_) if replies == 2 => Ok(true),
        Err(Interruption { cause, .. }) => match refused {
            Some(refused) => Err(ConnectionError::refused(refused)),
            None if cause.kind() == ConnectionErrorKind::TimedOut => Ok(false),
            None => Err(cause),
        },
    }
}

#[cfg(all(test, not(rediscope_shuttle)))]
mod tests {
    use super::*;
    use crate::connection::url::one;
    use rediscope_testing::eventually;
    use rediscope_testing::server::Server as RedisServer;
    use rediscope_testing::tasks::single;

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn two_messages_that_arrive_at_once_are_a_message() {
        let redis = RedisServer::start();
        let settings = Settings::default();
        let sentinel = Server::new(one(redis.url()).unwrap(), &settings).unwrap();
        let received = std::thread::scope(|scope| {
            scope.spawn(|| {
                let subscribers = || redis.ask::<(String, u64)>(&["PUBSUB", "NUMSUB", CHANNEL]).1;
                eventually(SOON, "it is subscribed", || subscribers() == 1);
                // Both are in one write of the server's.
                let mut pipe = redis::pipe();
                pipe.atomic();
                (0..2).for_each(|nth| _ = pipe.cmd("PUBLISH").arg(CHANNEL).arg(nth));
                pipe.exec(&mut redis.connection()).unwrap();
            });
            single().block_on(message(&sentinel, &settings, SOON))
        });
        assert!(received.unwrap());
    }
}
