//! Requests of lanes that are closed, passed on, or late, without a server.
//!
//! Guarantee: tasks

use std::future::poll_fn;

use tokio::runtime::Runtime;

use super::*;
use crate::pool::job::Job;
use crate::pool::tasks::lane_loop;
use crate::pool::tests::config_at;
use crate::protocol::batch::RequestKind;
use rediscope_testing::tasks::single as runtime;

const BYTES: &[u8] = b"*1\r\n$4\r\nPING\r\n";

/// Two lanes of one runtime, which no connection serves.
fn lanes(runtime: &Runtime) -> [Arc<Lane>; 2] {
    let (config, endpoint) = config_at("redis://127.0.0.1:1/".to_owned(), Duration::from_secs(60));
    let context = Arc::new(PoolContext::new(config, endpoint));
    let id = runtime.handle().id();
    let lanes = [(); 2].map(|()| Lane::new(&context, lane_loop::serve, id));
    lanes.iter().for_each(|lane| lane.set_siblings(&lanes));
    lanes
}

fn serve(lane: &Lane, is_served: bool) {
    lane.is_running.store(is_served, Ordering::Release);
}

fn request() -> BatchRequest {
    BatchRequest::new(BYTES.to_vec(), RequestKind::Read)
}

fn submit(lane: &Arc<Lane>, since: Duration, left: Duration) -> LaneCall {
    let (now, place) = (Instant::now(), lane.try_place().unwrap().unwrap());
    let since = now.checked_sub(since).unwrap();
    lane.submit(request(), [since, now, now + left], place, None)
}

const LEFT: Duration = Duration::from_secs(60);

#[test]
fn a_lane_that_is_retired_before_the_request_comes_returns_its_bytes() {
    let runtime = runtime();
    let [lane, _] = lanes(&runtime);
    serve(&lane, true);
    let place = lane.try_place().unwrap().unwrap();
    lane.retire();
    let now = Instant::now();
    let mut call = lane.submit(request(), [now, now, now + LEFT], place, None);
    let (response, bytes) = runtime.block_on(poll_fn(|context| call.poll(context)));
    assert!(matches!(response, Err(CheckoutError::Closed)), "{response:?}");
    assert_eq!(bytes, BYTES);
    assert_eq!(lane.in_flight(), 0);
}

#[test]
fn a_request_that_waited_long_for_its_place_has_a_timer_of_its_own() {
    let runtime = runtime();
    let [lane, _] = lanes(&runtime);
    serve(&lane, true);
    assert!(!submit(&lane, Duration::ZERO, LEFT).is_alone());
    let mut late = submit(&lane, LEFT, Duration::from_millis(20));
    let (response, _) = runtime.block_on(async {
        let polled = poll_fn(|context| late.poll(context));
        tokio::time::timeout(Duration::from_secs(20), polled).await.expect("it hangs")
    });
    assert!(matches!(response, Err(CheckoutError::Timeout(_))), "{response:?}");
}

#[test]
fn a_request_that_is_passed_on_follows_the_lane_that_has_it() {
    let runtime = runtime();
    let [lane, other] = lanes(&runtime);
    let mut call = submit(&lane, Duration::ZERO, LEFT);
    serve(&other, true);
    lane.pass_on();
    assert_eq!((lane.queue.len(), other.queue.len()), (0, 1));
    // The former lane is served again, and the one that has the request is not.
    serve(&lane, true);
    serve(&other, false);
    let _runtime = runtime.enter();
    let polled = call.poll(&mut Context::from_waker(Waker::noop()));
    assert!(polled.is_pending() && call.is_alone());
    assert!(Arc::ptr_eq(&call.lane, &other));
    assert!(other.is_open(), "no connection is opened");
    drop(call);
    assert_eq!((other.queue.len(), lane.in_flight()), (0, 0));
}

#[test]
fn late_requests_fail_and_the_others_keep_their_places_in_the_queue() {
    let runtime = runtime();
    let [lane, _] = lanes(&runtime);
    let calls: Vec<_> = (0..4)
        .map(|nth| submit(&lane, LEFT, if nth % 2 == 0 { Duration::ZERO } else { LEFT }))
        .collect();
    lane.close();
    lane.fail_late();
    assert_eq!((lane.queue.len(), lane.in_flight()), (2, 2));
    let is_late = |call: &LaneCall| Job::response(&call.job).is_some();
    assert_eq!(calls.iter().map(is_late).collect::<Vec<_>>(), [true, false, true, false]);
}
