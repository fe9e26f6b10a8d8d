//! A scope's right to its connection, which the pool can revoke.

use std::ops::{Deref, DerefMut};

use crate::error::checkout::CheckoutError;
use crate::error::pin_expired::PinExpired;
use crate::pool::server_pool::PinnedLine;
use crate::pool::tasks::line::TaskLine;

/// A scope's right to its connection.
pub(crate) struct TaskPin {}

/// The connection during one call of the scope.
pub(crate) struct TaskCall {}

impl Deref for TaskCall {
    type Target = TaskLine;

    fn deref(&self) -> &TaskLine {
        todo!()
    }
}

impl DerefMut for TaskCall {
    fn deref_mut(&mut self) -> &mut TaskLine {
        todo!()
    }
}

impl PinnedLine for TaskPin {
    type Line = TaskLine;
    type Call = TaskCall;

    fn call<E: From<PinExpired> + From<CheckoutError>>(&self) -> Result<TaskCall, E> {
        todo!()
    }

    fn last_call<E: From<PinExpired> + From<CheckoutError>>(self) -> Result<TaskCall, E> {
        todo!()
    }

    fn touch(&self) {
        todo!()
    }
}
