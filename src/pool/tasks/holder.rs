//! The task that began a scope, or the thread outside of any task.

use std::sync::Arc;
use std::thread::ThreadId;

use crate::pool::scopes::Holder;
use crate::sync::{this_thread, thread_name};

/// The task that began a scope, or the thread outside of any task.
#[derive(Clone, Debug)]
pub(crate) enum HolderTask {
    Task(tokio::task::Id),
    Thread(ThreadId, Arc<str>),
}

impl HolderTask {
    pub(crate) fn here() -> Self {
        match tokio::task::try_id() {
            Some(id) => Self::Task(id),
            None => Self::Thread(this_thread(), thread_name()),
        }
    }
}

impl PartialEq for HolderTask {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Task(one), Self::Task(other)) => one == other,
            (Self::Thread(one, _), Self::Thread(other, _)) => one == other,
            _ => false,
        }
    }
}

impl Holder for HolderTask {
    fn current() -> Self {
        Self::here()
    }

    fn name(&self) -> Arc<str> {
        match self {
            Self::Task(id) => Arc::from(format!("task {id}")),
            Self::Thread(_, name) => Arc::clone(name),
        }
    }
}
