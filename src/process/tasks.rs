//! The tasks of a session manager, so that its close can end them and wait for that.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::runtime::{self, Handle};
use tokio::task::AbortHandle;

use crate::sync::lock;
use crate::sync::timer::until;

/// Delay between two looks at tasks that are to end.
const PAUSE: Duration = Duration::from_millis(1);

/// Maximum wait for the tasks of the caller's runtime, which its other threads may keep busy.
const PATIENCE: Duration = Duration::from_secs(5);

/// Maximum wait for the tasks of another runtime, which may not be run.
const GRACE: Duration = Duration::from_millis(100);

/// The tasks of a session manager. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct OwnTasks {
    tasks: Arc<Mutex<Vec<OwnTask>>>,
}

#[derive(Debug)]
struct OwnTask {
    runtime: runtime::Id,
    handle: AbortHandle,
}

impl OwnTasks {
    /// Has the runtime run a task. A runtime that has ended drops its future at once.
    pub(crate) fn spawn(
        &self,
        runtime: &Handle,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> AbortHandle {
        let handle = runtime.spawn(task).abort_handle();
        let mut tasks = lock(&self.tasks);
        tasks.retain(|task| !task.handle.is_finished());
        tasks.push(OwnTask { runtime: runtime.id(), handle: handle.clone() });
        handle
    }

    /// Ends all of them, and waits until they have ended. What they own was closed before, but for
    /// connections of calls that are polled no more.
    pub(crate) async fn end(&self) {
        lock(&self.tasks).iter().for_each(|task| task.handle.abort());
        let Ok(here) = Handle::try_current().map(|runtime| runtime.id()) else { return };
        let begun = Instant::now();
        let is_awaited = |task: &OwnTask| {
            let limit = if task.runtime == here { PATIENCE } else { GRACE };
            !task.handle.is_finished() && begun.elapsed() < limit
        };
        loop {
            let awaits = lock(&self.tasks).iter().any(is_awaited);
            // Once more in any case: the runtime counts a task until shortly after its end.
            let by = Instant::now() + PAUSE;
            let _: Option<()> = until(by, std::future::pending()).await;
            if !awaits {
                return;
            }
        }
    }
}
