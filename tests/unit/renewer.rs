//! The registration of the tasks that extend leases.
//!
//! Guarantee: locks, tasks

use super::*;
use crate::aio::SessionManager;
use crate::session::builder::{Checked, routers};

/// Of a server that no test asks.
#[expect(clippy::unwrap_used, reason = "test code, which clippy sees in #[test] only")]
pub(in crate::lock::tasks) fn client() -> ScriptClient<TaskPool> {
    let checked = SessionManager::builder("redis://127.0.0.1:1").checked().unwrap();
    let Checked { address, settings, kinds } = checked;
    let [pooled, own] = routers(address, &settings, [kinds.pooled.clone(), kinds.locks()]).unwrap();
    ScriptClient::new(pooled, own)
}

/// The task of the runtime is not run: each step is one here.
#[test]
fn a_task_that_is_dropped_late_leaves_the_next_one_registered() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _in = runtime.enter();
    let id = Handle::current().id();
    let renewer = TaskRenewer::new(client());
    drop(renewer.begin_acquisition().unwrap());
    let number = renewer.shared.lock().started;
    let first = Running { shared: Arc::clone(&renewer.shared), runtime: id, number };
    // It has no work, and ends.
    renewer.shared.lock().end_task(number);
    drop(renewer.begin_acquisition().unwrap());
    drop(first);
    assert!(renewer.shared.lock().has_task_in(id), "the next task has no registration");
}
