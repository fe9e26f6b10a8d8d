//! Jobs of tasks under a model checker: one task takes them, does them or puts them back, while the
//! submitters wait, or leave. `scripts/model` runs this.
//!
//! Planted mistakes show that the checks can fail.
//!
//! Guarantee: tasks

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code, which clippy does not see through `cfg(all(test, …))`"
)]

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc as Plain;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use shuttle::future::block_on;
use shuttle::thread;

use super::*;
use crate::pool::model::{assert_found_at_random, check};

const JOBS: usize = 3;

type Work = Job<Token, usize>;
type Queue = JobQueue<Token, usize>;

/// A request; its drop gives its place back.
#[derive(Debug)]
struct Token {
    number: usize,
    places: Plain<AtomicUsize>,
}

impl Drop for Token {
    fn drop(&mut self) {
        self.places.fetch_add(1, Ordering::SeqCst);
    }
}

#[derive(Default)]
struct World {
    places: Plain<AtomicUsize>,
    /// How often each job was done.
    done: [AtomicUsize; JOBS],
    /// Jobs whose submitter has left without a response.
    withdrawn: AtomicUsize,
    abandoned: AtomicUsize,
    responses: AtomicUsize,
}

/// Takes jobs until the queue is closed and empty. The first time that it has a job it puts it back.
fn take_all(world: &World, queue: &Queue, take: fn(&Work) -> Option<Token>) {
    let (mut waiting, mut puts_back) = (VecDeque::new(), true);
    while block_on(poll_fn(|context| queue.poll_waiting(context))) {
        queue.drain_into(&mut waiting);
        while let Some(job) = waiting.pop_front() {
            let Some(request) = take(&job) else { continue };
            thread::yield_now();
            if std::mem::take(&mut puts_back) {
                if job.requeue(request) == Submitter::Waits {
                    waiting.push_back(job);
                }
                queue.put_back(std::mem::take(&mut waiting));
                break;
            }
            let number = request.number;
            world.done[number].fetch_add(1, Ordering::SeqCst);
            drop(request);
            job.settle(number);
        }
    }
}

/// Waits for the response, or looks once and leaves.
fn submit(world: &World, queue: &Queue, number: usize, leaves: bool) {
    let job = Work::new(Token { number, places: Plain::clone(&world.places) }, None);
    assert!(queue.push(&job), "the queue is open");
    let response = block_on(poll_fn(|context| match job.poll(context) {
        Poll::Ready(response) => Poll::Ready(Some(response)),
        Poll::Pending if leaves => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    }));
    if let Some(response) = response {
        assert_eq!(response, number, "another job's response");
        world.responses.fetch_add(1, Ordering::SeqCst);
    }
    let done = &world.done[number];
    match job.leave() {
        Left::Withdrawn => {
            queue.remove(&job);
            assert_eq!(done.load(Ordering::SeqCst), 0, "withdrawn, and done before");
            thread::yield_now();
            assert_eq!(done.load(Ordering::SeqCst), 0, "withdrawn, and done");
            world.withdrawn.fetch_add(1, Ordering::SeqCst);
        }
        Left::Abandoned => _ = world.abandoned.fetch_add(1, Ordering::SeqCst),
        Left::Over => assert!(response.is_some()),
    }
}

fn jobs(take: fn(&Work) -> Option<Token>) {
    let (world, queue) = (Plain::new(World::default()), Plain::new(Queue::new()));
    let (of_taker, from) = (Plain::clone(&world), Plain::clone(&queue));
    let taker = thread::spawn(move || take_all(&of_taker, &from, take));
    let submitters: Vec<_> = (0..JOBS)
        .map(|number| {
            let (world, queue) = (Plain::clone(&world), Plain::clone(&queue));
            thread::spawn(move || submit(&world, &queue, number, number != 0))
        })
        .collect();
    submitters.into_iter().for_each(|submitter| submitter.join().unwrap());
    queue.close();
    taker.join().unwrap();
    let of = |count: &AtomicUsize| count.load(Ordering::SeqCst);
    let done: usize = world.done.iter().map(of).sum();
    assert!(world.done.iter().all(|done| of(done) <= 1), "a job was done twice");
    let ends = of(&world.withdrawn) + of(&world.abandoned) + of(&world.responses);
    assert_eq!(ends, JOBS, "a job has no end, or two");
    assert!(done + of(&world.withdrawn) <= JOBS, "a withdrawn job was done");
    assert_eq!(of(&world.places), JOBS, "a place was lost or doubled");
}

#[test]
fn a_job_has_one_end_and_is_never_done_after_it_was_withdrawn() {
    check(|| jobs(Work::take));
}

/// The mistake: the state is looked at, and changed in another step.
fn take_in_two_steps(job: &Work) -> Option<Token> {
    let copy = job
        .look(|request| Token { number: request.number, places: Plain::clone(&request.places) })?;
    thread::yield_now();
    if let Some(taken) = job.take() {
        std::mem::forget(copy);
        return Some(taken);
    }
    Some(copy)
}

#[test]
fn a_take_in_two_steps_is_found() {
    assert_found_at_random(|| jobs(take_in_two_steps), &["withdrawn", "place"]);
}
