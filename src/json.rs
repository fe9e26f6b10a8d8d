//! Values that are JSON text on the server. No error shows the text.

use std::any::type_name;

use redis::{FromRedisValue, ParsingError, RedisWrite, ToRedisArgs, ToSingleRedisArg, Value};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use crate::error::any::Error;
use crate::text::opaque_debug;

/// A value that is JSON text on the server. (Feature `serde`.)
///
/// A reply is read as `Json<T>`, alone or inside `Option`, `Vec` and tuples. A value is written with
/// [`encode`](Self::encode).
///
/// ```no_run
/// use rediscope::{Json, SessionManager, prelude::*};
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct User {
///     name: String,
///     logins: u32,
/// }
///
/// # fn main() -> Result<(), rediscope::Error> {
/// let users = SessionManager::connect("redis://127.0.0.1/")?.transactional();
/// users.watch(["user:7"]).run(|read, tx| {
///     let Json(mut user): Json<User> = read.get("user:7")?;
///     user.logins += 1;
///     Ok(tx.set("user:7", Json::encode(&user)?))
/// })?;
/// # Ok(()) }
/// ```
///
/// A reply that is not JSON of the type cannot be read: [`Error::Decode`], or
/// [`ReplyError::Unexpected`](crate::error::ReplyError::Unexpected) of an applied transaction. The error's
/// source has the line and the column, not the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Json<T>(
    /// The value.
    pub T,
);

/// A value as JSON text, which is one argument of a command. [`Json::encode`] makes it. `Debug` does not
/// show it.
#[derive(Clone, PartialEq, Eq)]
pub struct JsonText(Vec<u8>);

opaque_debug!(JsonText);

impl<T: Serialize> Json<T> {
    /// Writes `value` as JSON text.
    ///
    /// # Errors
    /// [`Error::NotJson`] if the value has no JSON form, such as a map whose keys are not text.
    pub fn encode(value: &T) -> Result<JsonText, Error> {
        let text = serde_json::to_vec(value);
        text.map(JsonText).map_err(|_| Error::NotJson { type_name: type_name::<T>() })
    }
}

impl<T: DeserializeOwned> FromRedisValue for Json<T> {
    fn from_redis_value_ref(value: &Value) -> Result<Self, ParsingError> {
        let text = match value {
            Value::BulkString(text) => text,
            Value::SimpleString(text) | Value::VerbatimString { text, .. } => text.as_bytes(),
            _ => return Err("the reply is no text".to_owned().into()),
        };
        serde_json::from_slice(text).map(Self).map_err(|error| {
            // The error's own text may repeat the reply.
            let what = match error.classify() {
                Category::Data => "another type than expected",
                Category::Eof => "an early end",
                Category::Io | Category::Syntax => "no JSON",
            };
            let (line, column) = (error.line(), error.column());
            format!("the reply holds {what} at line {line}, column {column}").into()
        })
    }

    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        Self::from_redis_value_ref(&value)
    }
}

impl ToRedisArgs for JsonText {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        out.write_arg(&self.0);
    }
}

impl ToSingleRedisArg for JsonText {}
