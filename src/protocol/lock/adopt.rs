//! The request for a held lock that another process handed over, and the server's reply to it.

use std::time::Duration;

use redis::{ServerError, Value};

use crate::protocol::lock::acquire::LockRequest;
use crate::protocol::lock::hold_token::HoldToken;
use crate::protocol::lock::script::{ADOPT, ScriptCall};

/// The server's reply to an adoption.
#[derive(Debug)]
pub(crate) enum AdoptReply<'a> {
    /// The new token holds the lock, with this fencing token and for this time; and whether it has a label.
    Held(u64, Duration, bool),
    /// The former token does not hold the lock any more.
    Lost,
    /// The new token was released before.
    Released,
    Error(&'a ServerError),
    Unexpected,
}

/// Returns the call by which `owner_token` adopts a hold. Requests of the former token are refused for
/// `remember`.
pub(crate) fn adopt(
    request: &LockRequest,
    token: &HoldToken,
    owner_token: &str,
    remember: Duration,
) -> ScriptCall {
    let names = &*request.names;
    let former = token.owner_token();
    let (done, former_done) = (names.done(owner_token), names.done(former));
    let keys = [&names.holders, &names.info, &done, &former_done];
    let keys = keys.into_iter().chain(names.is_semaphore.then_some(&names.alive));
    let lease = if request.renewed { request.lease } else { Duration::ZERO };
    let remember = if token.maybe_in_flight() { remember } else { Duration::ZERO };
    let arguments = [
        former,
        owner_token,
        &lease.as_millis().to_string(),
        request.label.as_deref().unwrap_or_default(),
        &remember.as_millis().to_string(),
        &names.wake,
        &token.fencing_token().to_string(),
    ];
    ScriptCall::new(&ADOPT, keys, arguments)
}

impl<'a> AdoptReply<'a> {
    pub(crate) fn of(reply: Option<&'a Value>) -> Self {
        match reply {
            Some(Value::ServerError(error)) => Self::Error(error),
            Some(Value::Array(values)) => match values.as_slice() {
                [Value::BulkString(digits), Value::Int(left), Value::Int(labelled)] => {
                    let fencing = std::str::from_utf8(digits).ok().and_then(|it| it.parse().ok());
                    let left = Duration::from_millis(u64::try_from(*left).unwrap_or_default());
                    let labelled = *labelled == 1;
                    fencing.map_or(Self::Unexpected, |it| Self::Held(it, left, labelled))
                }
                [Value::Int(0)] => Self::Lost,
                [Value::Int(-1)] => Self::Released,
                _ => Self::Unexpected,
            },
            _ => Self::Unexpected,
        }
    }
}
