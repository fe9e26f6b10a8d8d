//! COMMAND INFO: whether the server has a command.

use redis::Value;

/// Query for EXEC. If EXEC was renamed, a transaction would be queued, and the error to EXEC would
/// prove nothing.
pub(crate) const EXEC_INFO: &[u8] = b"*3\r\n$7\r\nCOMMAND\r\n$4\r\nINFO\r\n$4\r\nEXEC\r\n";

/// Query for WAITAOF, which came with 7.2.
pub(crate) const WAITAOF_INFO: &[u8] = b"*3\r\n$7\r\nCOMMAND\r\n$4\r\nINFO\r\n$7\r\nWAITAOF\r\n";

/// Returns whether the reply to COMMAND INFO shows that the server does not have the command. (The
/// user may not be permitted to run COMMAND INFO.)
pub(crate) fn is_unknown(answer: &Value) -> bool {
    matches!(answer, Value::Array(commands) if matches!(commands.first(), None | Some(Value::Nil)))
}
