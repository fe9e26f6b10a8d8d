//! The sets of lanes of runtimes that come and go.
//!
//! Guarantee: tasks

use super::*;
use crate::pool::tests::{SOON, config_at};

fn runtime_id() -> (tokio::runtime::Runtime, runtime::Id) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let id = runtime.handle().id();
    (runtime, id)
}

#[test]
fn a_set_that_a_caller_has_is_kept_until_it_is_dropped_and_no_longer() {
    let (config, endpoint) = config_at("redis://127.0.0.1:1".to_owned(), SOON);
    let lanes = Lanes::new(Arc::new(PoolContext::new(config, endpoint)));
    let ([(one, first), (_two, second)], (_three, third)) =
        ([runtime_id(), runtime_id()], runtime_id());
    let held = lanes.set(first);
    drop(one);
    // A caller of another runtime makes a set. The first one is about to be used, or its handle is.
    drop(lanes.set(second));
    assert!(Arc::ptr_eq(&held, &lanes.set(first)), "its requests are not closed with the others");
    drop(held);
    drop(lanes.set(third));
    let left: Vec<_> = lock(&lanes.sets).iter().map(|(id, _)| *id).collect();
    assert_eq!(left, [third], "the sets of runtimes that have ended are forgotten");
}
