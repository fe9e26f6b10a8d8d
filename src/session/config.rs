//! A whole configuration, read from a file or the environment. No value appears in an error, and no
//! address in `Debug`.

use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer};

use crate::connection::url::IntoAddress;
use crate::error::config::ConfigError;
use crate::session::builder::Builder;
use crate::session::config_value::{FromRaw, RawValue, parse};
use crate::settings::table;

/// A whole configuration, read from a file or from the environment with `serde` (feature `serde`).
///
/// Its names are those of [`Builder`]'s methods, and `url`, which is required. `url` has the
/// address in any of the forms of [`IntoAddress`].
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
///     url = "rediss://app@redis.internal/2"
///     max_size = 16
///     response_timeout = "500ms"
///     idle_timeout = "off"
///     tls.root_certificates = "/etc/redis/ca.pem"
/// "#)?;
/// // The program can set further values.
/// let sessions = config.builder().min_idle(2).build()?;
/// # Ok(()) }
/// ```
#[derive(Clone, Default)]
pub struct Config {
    url: Option<String>,
    server_info: Option<String>,
    tls: Files,
    values: SettingValues,
    /// First error in the configuration.
    error: Option<ConfigError>,
}

/// Paths of the PEM files.
#[derive(Clone, Default)]
struct Files {
    root_certificates: Option<String>,
    client_certificate: Option<String>,
    client_key: Option<String>,
}

const FILES: [&str; 3] = ["root_certificates", "client_certificate", "client_key"];

macro_rules! values {
    ($($(#[$doc:meta])* $name:ident: $type:ty $(as $argument:ty)? = $default:expr;)+) => {
        /// The builder's settings, each present if the configuration has it.
        #[derive(Clone, Default)]
        struct SettingValues {
            $($name: Option<$type>,)+
        }

        /// Names of all settings.
        const NAMES: &[&str] = &[
            "url", "server_info", "tls",
            "tls_root_certificates", "tls_client_certificate", "tls_client_key",
            $(stringify!($name),)+
        ];

        impl SettingValues {
            /// Returns `None` if no setting has that name.
            fn set(&mut self, name: &str, raw: &RawValue) -> Option<Result<(), ConfigError>> {
                $(if name == stringify!($name) {
                    let parsed = parse(stringify!($name), raw);
                    return Some(parsed.map(|value| self.$name = Some(value)));
                })+
                None
            }

            fn onto(&self, mut builder: Builder) -> Builder {
                $(if let Some(value) = &self.$name {
                    builder = builder.$name(value.to_owned());
                })+
                builder
            }

            fn overridden_by(self, other: Self) -> Self {
                Self { $($name: other.$name.or(self.$name),)+ }
            }

            fn show(&self, shown: &mut fmt::DebugStruct<'_, '_>) {
                $(if let Some(value) = &self.$name {
                    shown.field(stringify!($name), value);
                })+
            }
        }
    };
}

table::settings!(values);

impl Config {
    /// Returns a builder with the values of this configuration. The files of `tls` are read here.
    ///
    /// A setting that cannot work makes [`build`](Builder::build) fail, even if the program sets
    /// other values before that.
    pub fn builder(&self) -> Builder {
        let address = match (&self.error, &self.url) {
            (Some(error), _) => Err(error.clone()),
            (None, Some(url)) => url.as_str().into_address(),
            (None, None) => Err(address("the configuration has no url")),
        };
        let mut builder = self.values.onto(Builder::new(address));
        if let Some(like) = &self.server_info {
            builder = builder.server_info(like.as_str());
        }
        self.tls.onto(builder)
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
    #[must_use = "it is made, not changed"]
    pub fn overridden_by(self, other: Self) -> Self {
        Self {
            url: other.url.or(self.url),
            server_info: other.server_info.or(self.server_info),
            tls: self.tls.overridden_by(other.tls),
            values: self.values.overridden_by(other.values),
            error: self.error.or(other.error),
        }
    }

    fn from_raw(raw: &RawValue) -> Result<Self, ConfigError> {
        let RawValue::Table(entries) = raw else { return Err(unknown("it is no table of names")) };
        let (mut config, mut flat, mut seen) = (Self::default(), Files::default(), HashSet::new());
        for (name, raw) in entries {
            if !seen.insert(name) {
                return Err(unknown(format!("{} is given twice", printable(name))));
            }
            match (name.as_str(), name.strip_prefix("tls_")) {
                ("url", _) => {
                    let url =
                        String::from_raw(raw).ok_or_else(|| address("the url must be text"))?;
                    config.url = Some(url);
                }
                ("server_info", _) => {
                    config.server_info = Some(parse("server_info", raw)?);
                }
                ("tls", _) => config.tls = Files::from_raw(raw)?,
                (_, Some(file)) if FILES.contains(&file) => flat.set(file, raw)?,
                (name, _) => config.values.set(name, raw).unwrap_or_else(|| {
                    let known = NAMES.join(", ");
                    Err(unknown(format!(
                        "there is no setting {}; there are {known}",
                        printable(name)
                    )))
                })?,
            }
        }
        config.tls = config.tls.overridden_by(flat);
        Ok(config)
    }
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

impl Files {
    fn from_raw(raw: &RawValue) -> Result<Self, ConfigError> {
        let known = FILES.join(", ");
        let RawValue::Table(entries) = raw else {
            return Err(file_error(format!("must be a table of {known}")));
        };
        let mut files = Self::default();
        for (name, raw) in entries {
            if !FILES.contains(&name.as_str()) {
                let name = printable(name);
                return Err(file_error(format!("there is no setting {name}; there are {known}")));
            }
            files.set(name, raw)?;
        }
        Ok(files)
    }

    fn set(&mut self, name: &str, raw: &RawValue) -> Result<(), ConfigError> {
        let no_path = || file_error(format!("{name} must be the path of a file"));
        // The text of a certificate in place of a path must not appear in an error that
        // names the file.
        let path =
            String::from_raw(raw).filter(|path| !path.contains("-----")).ok_or_else(no_path)?;
        match name {
            "root_certificates" => self.root_certificates = Some(path),
            "client_certificate" => self.client_certificate = Some(path),
            _ => self.client_key = Some(path),
        }
        Ok(())
    }

    fn overridden_by(self, other: Self) -> Self {
        Self {
            root_certificates: other.root_certificates.or(self.root_certificates),
            client_certificate: other.client_certificate.or(self.client_certificate),
            client_key: other.client_key.or(self.client_key),
        }
    }

    fn any(&self) -> bool {
        [&self.root_certificates, &self.client_certificate, &self.client_key]
            .into_iter()
            .any(Option::is_some)
    }

    fn onto(&self, builder: Builder) -> Builder {
        match self.any() {
            false => builder,
            true => self.read_onto(builder),
        }
    }

    #[cfg(not(feature = "tls-rustls"))]
    fn read_onto(&self, builder: Builder) -> Builder {
        builder.refused(file_error("needs the feature tls-rustls"))
    }

    #[cfg(feature = "tls-rustls")]
    fn read_onto(&self, builder: Builder) -> Builder {
        match self.read() {
            Ok(tls) => builder.tls(tls),
            Err(error) => builder.refused(error),
        }
    }

    #[cfg(feature = "tls-rustls")]
    fn read(&self) -> Result<crate::settings::tls::Tls, ConfigError> {
        let read = |name: &str, path: &str| {
            let cannot = |error| file_error(format!("{name}: {path} cannot be read: {error}"));
            std::fs::read(path).map_err(cannot)
        };
        let mut tls = crate::settings::tls::Tls::new();
        if let Some(path) = &self.root_certificates {
            tls = tls.root_certificates(read("root_certificates", path)?);
        }
        match (&self.client_certificate, &self.client_key) {
            (None, None) => Ok(tls),
            (Some(certificate), Some(key)) => {
                let certificate = read("client_certificate", certificate)?;
                Ok(tls.client_certificate(certificate, read("client_key", key)?))
            }
            _ => Err(file_error("client_certificate and client_key are given together")),
        }
    }
}

impl<'de> Deserialize<'de> for Config {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let raw = RawValue::deserialize(from)?;
        Ok(Self::from_raw(&raw)
            .unwrap_or_else(|error| Self { error: Some(error), ..Self::default() }))
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Config");
        shown.field("url", &self.url.is_some());
        shown.field("server_info", &self.server_info.is_some());
        shown.field("tls", &self.tls.any());
        self.values.show(&mut shown);
        if let Some(error) = &self.error {
            shown.field("error", error);
        }
        shown.finish()
    }
}
