//! Credentials of connections: from the address, or from the provider. They are never shown.

use std::error::Error;

use redis::RedisConnectionInfo;

use crate::connection::url::Address;
use crate::error::config::ConfigError;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::settings::account::{Account, PasswordFile};
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

/// Puts the settings of a user and a password in place: into the address, or as a provider that reads the
/// file. Behind sentinels they are the servers'.
pub(crate) fn set_account(
    account: Account,
    mut address: Address,
    provider: &mut Option<Provider>,
) -> Result<Address, ConfigError> {
    let Account { username, password, password_file } = account;
    let wrong = |setting, problem: &str| Err(ConfigError::setting(setting, problem));
    let (setting, user) = match (&username, &password, &password_file) {
        (None, None, None) => return Ok(address),
        (Some(_), None, None) => return wrong("username", "needs password or password_file"),
        (_, Some(_), Some(_)) => {
            return wrong("password_file", "password is given too; leave one out");
        }
        (user, _, None) => ("password", user),
        (user, _, Some(_)) => ("password_file", user),
    };
    for (name, text) in [("username", user), ("password", &password)] {
        if text.as_ref().is_some_and(String::is_empty) {
            return wrong(name, "must not be empty");
        }
    }
    if provider.is_some() {
        return wrong(setting, "credentials_provider is given too; leave one out");
    }
    let infos = match &mut address {
        Address::One(info) => std::slice::from_mut(&mut **info),
        Address::Cluster(infos) => infos,
        Address::Sentinel(behind) => std::slice::from_mut(&mut behind.server_template),
    };
    for info in infos {
        let auth = info.redis_settings().clone();
        if auth.username().is_some() || auth.password().is_some() {
            return wrong(setting, IN_ADDRESS);
        }
        if let Some(password) = &password {
            let auth = username.iter().fold(auth, |auth, user| auth.set_username(user));
            *info = info.clone().set_redis_settings(auth.set_password(password));
        }
    }
    if let Some(path) = password_file {
        let file = PasswordFile { username, path };
        file.read().map_err(|reason| ConfigError::setting(setting, reason))?;
        *provider = Some(Provider::file(file));
    }
    Ok(address)
}

const IN_ADDRESS: &str = "the address holds a user or a password too; leave them out of it";

/// Checks that either the address or the provider has credentials, not both.
pub(crate) fn check(
    auth: &RedisConnectionInfo,
    provider: Option<&Provider>,
) -> Result<(), ConfigError> {
    if provider.is_some() && (auth.username().is_some() || auth.password().is_some()) {
        return Err(ConfigError::setting("credentials_provider", IN_ADDRESS));
    }
    Ok(())
}
