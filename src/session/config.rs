//! A whole configuration, read from a file or the environment. No value appears in an error, and no
//! address in `Debug`.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer};

use crate::connection::url::IntoAddress;
use crate::error::config::ConfigError;
use crate::session::builder::Builder;
use crate::session::config_value::{RawValue, parse};
use crate::settings::table;

/// A whole configuration, read from a file or from the environment with `serde` (feature `serde`).
///
/// Its names are those of [`Builder`]'s methods, and `url`, which is required. `url` has the
/// address in any of the forms of [`IntoAddress`]; `username`, and `password` or `password_file`, may
/// be apart from it.
///
/// * Numbers may be text, because every value in the environment is text.
/// * Durations are text with a unit: `"500ms"`, `"2s"`, `"10m"`, `"1h"`.
/// * A setting that may be `None` may be `"off"`.
/// * A setting that is missing keeps its default.
/// * `tls` is a table with the paths of PEM files: `root_certificates`, `client_certificate`,
///   `client_key`.
/// * If the format has no tables, their names are `tls_root_certificates`, `tls_client_certificate`
///   and `tls_client_key`. If both forms are given, these apply.
///
/// **Deserializing does not fail because of the content.** If a name is unknown or a value does not
/// fit, [`build`](Builder::build) fails. Its error has the name, not the value. A deserializer's
/// own error would show the line with the password. (A text that is not TOML at all still fails
/// with the deserializer's own error.)
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let config: rediscope::Config = toml::from_str(r#"
///     url = "rediss://redis.internal/2"
///     username = "app"
///     password_file = "/run/secrets/redis"
///     max_size = 16
///     response_timeout = "500ms"
///     idle_timeout = "off"
///     tls.root_certificates = "/etc/redis/ca.pem"
/// "#)?;
/// // The program can set further values.
/// let sessions = config.builder().min_idle(2).build()?;
/// # Ok(()) }
/// ```
///
/// A file, and the environment (`APP_REDIS_MAX_SIZE=4`) in place of what it says, with the crate `config`:
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let config: rediscope::Config = config::Config::builder()
///     .add_source(config::File::with_name("redis.toml"))
///     .add_source(config::Environment::with_prefix("APP_REDIS"))
///     .build()?
///     .try_deserialize()?;
/// let sessions = config.builder().build()?;
/// # Ok(()) }
/// ```
#[derive(Clone, Default)]
pub struct Config {
    /// Values by the names of their settings, which they fit. A file's name has no `tls_`.
    values: BTreeMap<&'static str, RawValue>,
    /// First error in the configuration.
    error: Option<ConfigError>,
}

/// Names of the PEM files.
const FILES: [&str; 3] = ["root_certificates", "client_certificate", "client_key"];

/// Names whose values `Debug` does not show. (A file's name may be a password by mistake.)
const HIDDEN: [&str; 5] = ["url", "username", "password", "password_file", "server_info"];

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident: $type:ty $(as $argument:ty)? = $default:expr;)+) => {
        /// Names of all settings.
        const NAMES: &[&str] = &[
            "url", "username", "password", "password_file", "server_info", "tls",
            "tls_root_certificates", "tls_client_certificate", "tls_client_key",
            $(stringify!($name),)+
        ];

        /// Sets the builder's setting with that name. The address and the files only have to fit.
        fn set(builder: Builder, name: &str, value: &RawValue) -> Result<Builder, ConfigError> {
            match name {
                "url" if value.text().is_none() => Err(address("the url must be text")),
                "username" => Ok(builder.username(parse::<String>("username", value)?)),
                "password" => Ok(builder.password(parse::<String>("password", value)?)),
                "password_file" => Ok(builder.password_file(parse::<String>("password_file", value)?)),
                "server_info" => Ok(builder.server_info(parse::<String>("server_info", value)?)),
                // The text of a certificate in place of a path must not appear in an error that
                // names the file.
                file if FILES.contains(&file)
                    && value.text().is_none_or(|path| path.contains("-----")) =>
                {
                    Err(file_error(format!("{file} must be the path of a file")))
                }
                $(stringify!($name) => {
                    Ok(builder.$name(parse::<$type>(stringify!($name), value)?))
                })+
                _ => Ok(builder),
            }
        }
    };
}

table::settings!(names);

impl Config {
    /// Returns a builder with the values of this configuration. The files of `tls` are read here.
    ///
    /// A setting that cannot work makes [`build`](Builder::build) fail, even if the program sets
    /// other values before that.
    pub fn builder(&self) -> Builder {
        self.try_builder().unwrap_or_else(|error| Builder::new(Err(error)))
    }

    fn try_builder(&self) -> Result<Builder, ConfigError> {
        if let Some(error) = &self.error {
            return Err(error.clone());
        }
        let url = self.text("url").ok_or_else(|| address("the configuration has no url"))?;
        let builder = Builder::new(Ok(url.into_address()?));
        let builder =
            self.values.iter().try_fold(builder, |to, (name, value)| set(to, name, value))?;
        let any_file = FILES.iter().any(|name| self.values.contains_key(name));
        if any_file { self.read_files(builder) } else { Ok(builder) }
    }

    /// Returns this configuration with the values of `other` in place of its own, such as a file
    /// overridden by the environment.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use rediscope::Config;
    ///
    /// let file: Config = toml::from_str("url = 'redis://127.0.0.1/'\nmax_size = 16")?;
    /// let here: Config = toml::from_str("max_size = 2")?;
    /// let sessions = file.overridden_by(here).builder().build()?;
    /// assert_eq!(sessions.status().pooled.max_size, 2);
    /// # Ok(()) }
    /// ```
    #[must_use = "returns the merged configuration"]
    pub fn overridden_by(mut self, other: Self) -> Self {
        self.values.extend(other.values);
        Self { values: self.values, error: self.error.or(other.error) }
    }

    fn from_raw(raw: RawValue) -> Result<Self, ConfigError> {
        let RawValue::Table(entries) = raw else { return Err(unknown("it is no table of names")) };
        let (mut values, mut files, mut seen) = (BTreeMap::new(), BTreeMap::new(), HashSet::new());
        // Set on a builder that is dropped: a value that does not fit its setting fails.
        let fits = |name: &str, value: &RawValue| {
            set(Builder::new(Err(address("unused"))), name, value).map(drop)
        };
        for (name, value) in entries {
            if !seen.insert(name.clone()) {
                return Err(unknown(format!("{} is given twice", printable(&name))));
            }
            match (known(&name, NAMES).map_err(unknown)?, value) {
                ("tls", RawValue::Table(entries)) => {
                    for (name, value) in entries {
                        let name = known(&name, &FILES).map_err(file_error)?;
                        fits(name, &value)?;
                        files.insert(name, value);
                    }
                }
                ("tls", _) => {
                    return Err(file_error(format!("must be a table of {}", FILES.join(", "))));
                }
                (name, value) => {
                    let name = name.strip_prefix("tls_").unwrap_or(name);
                    fits(name, &value)?;
                    values.insert(name, value);
                }
            }
        }
        // The files' names outside the table apply if both are given.
        files.append(&mut values);
        Ok(Self { values: files, error: None })
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.values.get(name).and_then(RawValue::text)
    }

    #[cfg(not(feature = "tls-rustls"))]
    fn read_files(&self, _: Builder) -> Result<Builder, ConfigError> {
        Err(file_error("needs the feature tls-rustls"))
    }

    #[cfg(feature = "tls-rustls")]
    fn read_files(&self, builder: Builder) -> Result<Builder, ConfigError> {
        let read = |name| {
            let Some(path) = self.text(name) else { return Ok(None) };
            let cannot = |error| file_error(format!("{name}: {path} cannot be read: {error}"));
            std::fs::read(path).map(Some).map_err(cannot)
        };
        let mut tls = crate::settings::tls::Tls::new();
        if let Some(pem) = read("root_certificates")? {
            tls = tls.root_certificates(pem);
        }
        match (read("client_certificate")?, read("client_key")?) {
            (None, None) => {}
            (Some(certificate), Some(key)) => tls = tls.client_certificate(certificate, key),
            _ => return Err(file_error("client_certificate and client_key are given together")),
        }
        Ok(builder.tls(tls))
    }
}

/// Returns the name if it is one of those that are `known`.
fn known(name: &str, known: &[&'static str]) -> Result<&'static str, String> {
    known.iter().copied().find(|known| *known == name).ok_or_else(|| {
        format!("there is no setting {}; there are {}", printable(name), known.join(", "))
    })
}

/// Returns `name` if it is printable as a name; other text in its place is not repeated.
fn printable(name: &str) -> String {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    match !name.is_empty() && name.len() <= 64 && name.chars().all(is_name) {
        true => format!("`{name}`"),
        false => "of the name that it has".to_owned(),
    }
}

fn address(reason: &str) -> ConfigError {
    ConfigError::Address { reason: reason.to_owned() }
}

fn unknown(reason: impl Into<String>) -> ConfigError {
    ConfigError::Configuration { reason: reason.into() }
}

fn file_error(reason: impl Into<String>) -> ConfigError {
    ConfigError::setting("tls", reason)
}

impl<'de> Deserialize<'de> for Config {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let raw = RawValue::deserialize(from)?;
        Ok(Self::from_raw(raw)
            .unwrap_or_else(|error| Self { error: Some(error), ..Self::default() }))
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Config");
        for (name, value) in &self.values {
            match FILES.contains(name) || HIDDEN.contains(name) {
                true => shown.field(name, &true),
                false => shown.field(name, value),
            };
        }
        if let Some(error) = &self.error {
            shown.field("error", error);
        }
        shown.finish()
    }
}
