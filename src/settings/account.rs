//! A user and a password that are not in the address. Neither is shown.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use crate::text::opaque_debug;

/// Maximum size of a password's file, in bytes.
const MOST: u64 = 64 * 1024;

/// The settings of a user and a password, as they were given.
#[derive(Clone, Default)]
pub(crate) struct Account {
    pub(crate) username: Option<String>,
    pub(crate) password: Option<String>,
    pub(crate) password_file: Option<PathBuf>,
}

opaque_debug!(Account);

/// A password in a file, which is read for each connection that is opened.
pub(crate) struct PasswordFile {
    pub(crate) username: Option<String>,
    pub(crate) path: PathBuf,
}

impl PasswordFile {
    /// Reads the password. The line end behind it is cut off.
    ///
    /// # Errors
    /// The reason, without the path and the password.
    pub(crate) fn read(&self) -> Result<String, String> {
        let mut bytes = Vec::new();
        File::open(&self.path)
            .and_then(|file| file.take(MOST + 1).read_to_end(&mut bytes))
            .map_err(|error| format!("cannot be read: {error}"))?;
        if bytes.len() as u64 > MOST {
            return Err(format!("is larger than {MOST} bytes"));
        }
        let text = String::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned())?;
        let password = text.trim_end_matches(['\r', '\n']);
        match password {
            "" => Err("holds no password".to_owned()),
            password => Ok(password.to_owned()),
        }
    }
}
