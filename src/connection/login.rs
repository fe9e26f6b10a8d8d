//! Who a connection says it is: what the address says, or the provider of credentials.
//!
//! Never: shown.

use redis::RedisConnectionInfo;

use crate::error::config::ConfigError;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::settings::credentials::Provider;

/// Who a connection says it is.
pub(crate) struct Login {
    pub(crate) who: RedisConnectionInfo,
    /// Of the credentials, where they may change.
    pub(crate) version: u64,
}

impl Login {
    /// `who` is what the address says.
    pub(crate) fn new(
        who: &RedisConnectionInfo,
        provider: Option<&Provider>,
    ) -> Result<Self, ConnectionError> {
        let who = who.clone();
        let Some(provider) = provider else { return Ok(Self { who, version: 0 }) };
        // First: credentials that are newer than their number are said once more, and no harm is
        // done.
        let version = provider.version();
        let credentials = provider.credentials().map_err(|error| {
            ConnectionError::new(
                ConnectionErrorKind::Credentials,
                format!("the provider says: {error}"),
            )
        })?;
        let (user, password) = credentials.parts();
        let who = match user {
            Some(user) => who.set_username(user),
            None => who,
        };
        Ok(Self { who: who.set_password(password), version })
    }
}

/// Either the address says it, or the provider does.
pub(crate) fn check(
    who: &RedisConnectionInfo,
    provider: Option<&Provider>,
) -> Result<(), ConfigError> {
    if provider.is_some() && (who.username().is_some() || who.password().is_some()) {
        let problem = "the address holds a user or a password too; leave them out of it";
        return Err(ConfigError::setting("credentials_provider", problem));
    }
    Ok(())
}
