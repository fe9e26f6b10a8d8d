//! Places under callers that wait, give up, and are polled no more.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;
use std::time::Duration;

use super::*;
/// Longer than any wait here.
const SOON: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

type Taking<'p> = Pin<Box<dyn Future<Output = Result<(), NoPlace>> + 'p>>;

fn taking(places: &Places, within: Duration) -> Taking<'_> {
    Box::pin(places.take(Instant::now() + within))
}

fn poll(future: &mut Taking<'_>, wakes: &Arc<Wakes>) -> Poll<Result<(), NoPlace>> {
    future.as_mut().poll(&mut Context::from_waker(&Waker::from(Arc::clone(wakes))))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

#[test]
fn a_place_goes_to_the_caller_that_came_first() {
    let runtime = runtime();
    let _runtime = runtime.enter();
    let (places, wakes) = (Places::new(1), [(); 2].map(|()| Arc::<Wakes>::default()));
    assert_eq!(places.try_take(), Ok(true));
    let mut callers = [(); 2].map(|()| taking(&places, SOON));
    for (caller, wakes) in callers.iter_mut().zip(&wakes) {
        assert!(poll(caller, wakes).is_pending());
    }
    places.add();
    assert_eq!(wakes.each_ref().map(|wakes| wakes.0.load(Ordering::SeqCst)), [1, 0]);
    assert_eq!(places.try_take(), Ok(false), "a new caller passes a waiting one");
    assert!(poll(&mut callers[1], &wakes[1]).is_pending());
    assert_eq!(poll(&mut callers[0], &wakes[0]), Poll::Ready(Ok(())));
    assert_eq!(places.free(), 0);
}

#[test]
fn a_caller_that_leaves_after_it_was_woken_hands_its_turn_on() {
    let runtime = runtime();
    let _runtime = runtime.enter();
    let (places, wakes) = (Places::new(1), [(); 2].map(|()| Arc::<Wakes>::default()));
    assert_eq!(places.try_take(), Ok(true));
    let [mut first, mut second] = [(); 2].map(|()| taking(&places, SOON));
    assert!(poll(&mut first, &wakes[0]).is_pending());
    assert!(poll(&mut second, &wakes[1]).is_pending());
    places.add();
    drop(first);
    assert_eq!(wakes[1].0.load(Ordering::SeqCst), 1);
    assert_eq!(poll(&mut second, &wakes[1]), Poll::Ready(Ok(())));
}

#[test]
fn a_caller_that_is_polled_no_more_keeps_no_place_and_holds_up_none_after_its_deadline() {
    let runtime = runtime();
    let (places, wakes) = (Places::new(1), Arc::<Wakes>::default());
    assert_eq!(places.try_take(), Ok(true));
    let short = Duration::from_millis(50);
    let forgotten = [(); 3].map(|()| {
        let _runtime = runtime.enter();
        let mut caller = taking(&places, short);
        assert!(poll(&mut caller, &wakes).is_pending());
        caller
    });
    places.add();
    // They were woken, and are still there.
    runtime.block_on(taking(&places, SOON)).unwrap();
    places.add();
    assert_eq!((places.free(), places.try_take()), (1, Ok(true)));
    std::mem::forget(forgotten);
}

#[test]
fn a_caller_gives_up_at_its_deadline_and_when_the_places_are_closed() {
    let runtime = runtime();
    let places = Places::new(0);
    let late = runtime.block_on(taking(&places, Duration::from_millis(5)));
    assert_eq!(late, Err(NoPlace::TimedOut));
    let wakes = Arc::<Wakes>::default();
    let _runtime = runtime.enter();
    let mut waiting = taking(&places, SOON);
    assert!(poll(&mut waiting, &wakes).is_pending());
    places.close();
    assert_eq!(wakes.0.load(Ordering::SeqCst), 1);
    assert_eq!(poll(&mut waiting, &wakes), Poll::Ready(Err(NoPlace::Closed)));
    assert_eq!(places.try_take(), Err(NoPlace::Closed));
}
