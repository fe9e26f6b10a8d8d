//! Sends a request of the pooled handle: to the only server or, in a cluster, to each command's.

use std::panic::Location;

use crate::commit::wait_limit::WaitLimit;
use crate::error::any::Error;
use crate::pool::router::Router;
use crate::pool::server_pool::ServerPool;
use crate::pooled::fan_out;
use crate::pooled::fan_out::Responses;
use crate::pooled::request::{Carried, Request};
use crate::protocol::cluster::route::Route;

/// Sends the request of this many commands. `wait`: how long it waits for connections. `carried`: what
/// became of it on a lane.
///
/// Dropped before its end, it may have sent any part of the request. A connection that awaits
/// replies is then closed.
pub(crate) async fn send<P: ServerPool>(
    router: &Router<P>,
    (request, place): (&Request, &'static Location<'static>),
    (bytes, count): (&[u8], usize),
    wait: WaitLimit,
    carried: Option<Box<Carried>>,
) -> Result<Responses, Error> {
    if router.is_cluster() {
        let deadline = wait.deadline(router.settings());
        // Boxed: it is larger than the future for one server.
        return Box::pin(fan_out::request(router, place, bytes, deadline)).await;
    }
    let deadline = match &carried {
        Some(carried) => carried.deadline,
        None => wait.deadline(router.settings()),
    };
    let all = (bytes, count);
    let (replies, _) = request.ask(router, &Route::default(), all, deadline, carried).await?;
    Ok(Responses { replies, in_part: Vec::new() })
}
