//! Credentials of connections: from the address, or from the provider. They are never shown.

use std::error::Error;

use redis::RedisConnectionInfo;

use crate::error::config::ConfigError;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::settings::credentials::{Credentials, Provider};

/// The source of a connection's credentials.
pub(crate) struct Login {
    pub(crate) auth: RedisConnectionInfo,
    /// Version of the credentials, if they may change.
    pub(crate) version: u64,
}

impl Login {
    /// `auth` is the address's login.
    pub(crate) fn new(
        auth: &RedisConnectionInfo,
        provider: Option<&Provider>,
    ) -> Result<Self, ConnectionError> {
        let Some(provider) = provider else { return Ok(Self { auth: auth.clone(), version: 0 }) };
        let (version, credentials) = provider.credentials();
        Self::with(auth, version, credentials)
    }

    /// Puts the provider's credentials in the place of the address's.
    pub(crate) fn with(
        auth: &RedisConnectionInfo,
        version: u64,
        credentials: Result<Credentials, Box<dyn Error + Send + Sync>>,
    ) -> Result<Self, ConnectionError> {
        let auth = auth.clone();
        let credentials = credentials.map_err(|error| {
            ConnectionError::new(
                ConnectionErrorKind::Credentials,
                format!("the provider failed: {error}"),
            )
        })?;
        let (user, password) = credentials.parts();
        let auth = match user {
            Some(user) => auth.set_username(user),
            None => auth,
        };
        Ok(Self { auth: auth.set_password(password), version })
    }
}

/// Checks that either the address or the provider has credentials, not both.
pub(crate) fn check(
    auth: &RedisConnectionInfo,
    provider: Option<&Provider>,
) -> Result<(), ConfigError> {
    if provider.is_some() && (auth.username().is_some() || auth.password().is_some()) {
        let problem = "the address holds a user or a password too; leave them out of it";
        return Err(ConfigError::setting("credentials_provider", problem));
    }
    Ok(())
}
