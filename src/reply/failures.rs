//! The failed commands of an applied transaction.

use redis::Value;

use crate::protocol::command::display_name::display_name;
use crate::protocol::known_errors;
use crate::protocol::server_error::ServerError;
use crate::reply::error::ReplyError;

/// The failed commands of an applied transaction with their errors; and whether all commands failed
/// without an effect.
pub(crate) fn failures<'n>(
    values: &[Value],
    names: impl Iterator<Item = &'n [u8]>,
    full: bool,
) -> (Vec<ReplyError>, bool) {
    let failed = |value: &Value| matches!(value, Value::ServerError(_));
    // The names are rarely needed.
    if !values.iter().any(failed) {
        return (Vec::new(), false);
    }
    let mut changed_nothing = true;
    let failure = |(index, (value, name)): (_, (&Value, &[u8]))| {
        let Value::ServerError(error) = value else {
            changed_nothing = false;
            return None;
        };
        changed_nothing &= known_errors::queued_without_effect(name, error);
        let error = ServerError::of_queued(name, error).with_full_text(full);
        Some(ReplyError::Failed { index, command: display_name(name), error })
    };
    let names = names.chain(std::iter::repeat(&b"?"[..]));
    let failures = values.iter().zip(names).enumerate().filter_map(failure).collect();
    (failures, changed_nothing)
}
