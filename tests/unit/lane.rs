//! Requests of a lane that is closed while they are not in its queue.
//!
//! Guarantee: tasks

use std::task::Waker;
use std::time::Duration;

use tokio::runtime::Runtime;

use super::*;
use crate::pool::tests::{SOON, config_at};
use crate::protocol::batch::RequestKind;
use rediscope_testing::tasks::single as runtime;

/// Two lanes of one runtime, without connections.
fn lanes(runtime: &Runtime) -> [Arc<Lane>; 2] {
    let (config, endpoint) = config_at("redis://127.0.0.1:1".to_owned(), SOON);
    let context = Arc::new(PoolContext::new(config, endpoint));
    let serve: Serve = |_, _, _| Box::new(std::future::ready(()));
    let lanes = [(); 2].map(|()| Lane::new(&context, serve, runtime.handle().id()));
    lanes.iter().for_each(|lane| lane.set_siblings(&lanes));
    lanes
}

fn submit(lane: &Arc<Lane>) -> LaneCall {
    let request = BatchRequest::new(b"*1\r\n$4\r\nPING\r\n".to_vec(), RequestKind::Read);
    let (place, now) = (lane.try_place().unwrap().unwrap(), Instant::now());
    lane.submit(request, [now, now, now + SOON], place, None)
}

fn poll(call: &mut LaneCall) -> Poll<GroupAnswer> {
    call.poll(&mut Context::from_waker(Waker::noop()))
}

/// As the loop has them: taken out of the queue, and not sent yet.
#[test]
fn requests_that_come_back_to_a_lane_that_was_closed_meanwhile_fail_at_once() {
    let runtime = runtime();
    let [lane, _other] = lanes(&runtime);
    let mut call = submit(&lane);
    let mut waiting = VecDeque::new();
    lane.queue.drain_into(&mut waiting);
    assert_eq!(waiting.len(), 1);
    lane.close();
    lane.queue.put_back(waiting);
    lane.connection_ended();
    let Poll::Ready((Err(error), _)) = poll(&mut call) else { panic!("it waits") };
    assert!(matches!(error, CheckoutError::Closed), "{error:?}");
    assert!(lane.queue.is_empty());
    assert_eq!(lane.in_flight(), 0);
}

#[test]
fn requests_that_move_to_a_lane_that_was_closed_meanwhile_stay_in_theirs() {
    let runtime = runtime();
    let [lane, other] = lanes(&runtime);
    let calls = [(); 3].map(|()| submit(&lane));
    other.is_running.store(true, Ordering::Release);
    other.close();
    lane.pass_on();
    assert_eq!((lane.queue.len(), other.queue.len()), (3, 0));
    let mut waiting = VecDeque::new();
    lane.queue.drain_into(&mut waiting);
    let same = waiting.iter().zip(&calls).all(|(job, call)| Arc::ptr_eq(job, &call.job));
    assert!(same, "in the order of their arrival");
    lane.queue.put_back(waiting);
    lane.shut_down();
    for mut call in calls {
        let _runtime = runtime.enter();
        let Poll::Ready((Err(error), _)) = poll(&mut call) else { panic!("it waits") };
        assert!(matches!(error, CheckoutError::Closed), "{error:?}");
    }
}

/// Its sender is not run, or the request was put back: a doubt about it would be wrong.
#[test]
fn a_request_that_was_put_back_is_withdrawn_by_a_call_that_gives_up() {
    let runtime = runtime();
    let [lane, _other] = lanes(&runtime);
    let mut call = submit(&lane);
    let request = call.job.take().unwrap();
    call.is_late = true;
    call.give_up_at(Instant::now() + Duration::from_millis(1));
    assert_eq!(call.job.requeue(request), crate::pool::job::Submitter::Waits);
    let (response, _) = runtime.block_on(poll_fn(|context| call.poll(context)));
    let error = response.unwrap_err();
    assert!(matches!(error, CheckoutError::Connect { .. }), "{error:?}");
}
