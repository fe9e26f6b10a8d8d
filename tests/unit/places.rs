//! Places under callers that wait, give up, and are polled no more.
//!
//! Guarantee: tasks

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

/// Neither those that were woken, nor those that are woken then.
#[test]
fn callers_that_are_polled_no_more_are_passed_over() {
    let runtime = runtime();
    let (places, wakes) = (Places::new(2), Arc::<Wakes>::default());
    assert_eq!((places.try_take(), places.try_take()), (Ok(true), Ok(true)));
    let forgotten: Vec<_> = (0..100)
        .map(|_| {
            let _runtime = runtime.enter();
            let mut caller = taking(&places, SOON);
            assert!(poll(&mut caller, &wakes).is_pending());
            caller
        })
        .collect();
    let took = runtime.block_on(async {
        let mut waiting = taking(&places, SOON);
        assert!(poll(&mut waiting, &wakes).is_pending());
        // The first ones are woken, and take nothing.
        places.add_all(2);
        let began = Instant::now();
        waiting.await.unwrap();
        began.elapsed()
    });
    assert!(took < SOON / 4, "{took:?}");
    assert_eq!(places.free(), 1);
    runtime.block_on(taking(&places, SOON)).unwrap();
    places.add_all(2);
    // They may come back.
    let mut forgotten = forgotten;
    assert!(poll(&mut forgotten[70], &wakes).is_ready());
    assert!(poll(&mut forgotten[3], &wakes).is_ready());
    assert_eq!(places.free(), 0);
    assert!(poll(&mut forgotten[4], &wakes).is_pending());
    places.add();
    assert!(poll(&mut forgotten[4], &wakes).is_ready());
    std::mem::forget(forgotten);
}

/// One that is forgotten, and stays in memory, costs the steps of the others nothing.
#[test]
fn a_forgotten_caller_leaves_no_trace_of_those_that_came_and_left_after_it() {
    let runtime = runtime();
    let (places, wakes) = (Places::new(1), Arc::<Wakes>::default());
    let _runtime = runtime.enter();
    assert_eq!(places.try_take(), Ok(true));
    let mut forgotten = taking(&places, SOON);
    assert!(poll(&mut forgotten, &wakes).is_pending());
    places.add();
    std::thread::sleep(2 * GRACE);
    let mut waiting = taking(&places, SOON);
    for _ in 0..100_000 {
        // It waits behind the forgotten one until that is passed over.
        if poll(&mut waiting, &wakes).is_ready() {
            places.add();
        }
        waiting = taking(&places, SOON);
    }
    let state = places.state.lock();
    assert_eq!((state.queue.len(), state.passed.len(), state.free), (0, 1, 1));
    drop(state);
    assert!(poll(&mut forgotten, &wakes).is_ready());
    assert_eq!(places.free(), 0);
}

/// A search of all that wait, in each step, takes minutes.
#[test]
fn each_of_many_callers_is_served_in_its_turn_or_gives_up() {
    const CALLERS: usize = 100_000;
    let runtime = runtime();
    let places = Arc::new(Places::new(1));
    runtime.block_on(async {
        let within = Duration::from_secs(5);
        let tasks: Vec<_> = (0..CALLERS)
            .map(|number| {
                let places = Arc::clone(&places);
                let within =
                    if number % 3 == 0 { Duration::from_millis(300) } else { SOON + within };
                tokio::spawn(async move {
                    let took = places.take(Instant::now() + within).await;
                    tokio::task::yield_now().await;
                    took.inspect(|()| places.add())
                })
            })
            .collect();
        for task in tasks {
            assert!(matches!(task.await.unwrap(), Ok(()) | Err(NoPlace::TimedOut)));
        }
    });
    assert_eq!((places.free(), places.try_take()), (1, Ok(true)));
}

/// Callers that come, are polled, leave and are forgotten at random, against a list that is searched.
#[test]
fn places_are_never_more_or_less_than_they_were() {
    use proptest::prelude::*;
    let runtime = runtime();
    let _runtime = runtime.enter();
    let steps = prop::collection::vec((0u8..5, any::<prop::sample::Index>()), 0..200);
    proptest!(|(steps in steps, total in 0usize..4)| {
        let (places, wakes) = (Places::new(total), Arc::<Wakes>::default());
        let mut waiting: Vec<Taking<'_>> = Vec::new();
        let mut taken = 0;
        for (step, at) in steps {
            match step {
                0 => match places.try_take() {
                    Ok(took) => {
                        prop_assert_eq!(took, total - taken > waiting.len());
                        taken += usize::from(took);
                    }
                    Err(_) => prop_assert!(false, "they are not closed"),
                },
                1 => {
                    let mut caller = taking(&places, SOON);
                    let took = poll(&mut caller, &wakes).is_ready();
                    prop_assert_eq!(took, total - taken > waiting.len());
                    taken += usize::from(took);
                    if !took {
                        waiting.push(caller);
                    }
                }
                2 if !waiting.is_empty() => {
                    let at = at.index(waiting.len());
                    let took = poll(&mut waiting[at], &wakes).is_ready();
                    prop_assert_eq!(took, at < total - taken);
                    if took {
                        taken += 1;
                        drop(waiting.remove(at));
                    }
                }
                3 if !waiting.is_empty() => drop(waiting.remove(at.index(waiting.len()))),
                _ if taken > 0 => {
                    taken -= 1;
                    places.add();
                }
                _ => {}
            }
            prop_assert_eq!(places.free(), total - taken);
        }
    });
}

#[cfg(unix)]
#[test]
fn a_caller_that_waits_ends_in_a_forked_child() {
    let places = Places::new(0);
    let mut waiting = Box::pin(places.take(Instant::now() + Duration::from_secs(60)));
    // Outside of a runtime there is no timer.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let polled = async { poll_fn(|context| Poll::Ready(waiting.as_mut().poll(context))).await };
    assert!(runtime.block_on(polled).is_pending());
    assert_eq!(places.waiting(), 1);
    crate::sync::own_mutex::tests::is_dropped_in_a_child(&places.state, waiting);
    assert_eq!(places.waiting(), 0);
}
