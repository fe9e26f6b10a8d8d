//! The whole configuration from a file, with the environment over it.
//!
//! ```text
//! cargo run -p rediscope-integrations --bin configured
//! APP_REDIS_URL=redis://host/ APP_REDIS_MAX_SIZE=2 cargo run -p rediscope-integrations --bin configured
//! ```
//!
//! It starts a Redis server of its own ($REDIS_SERVER, or `redis-server` on the PATH), or uses the
//! one in $APP_REDIS_URL, or $REDIS_URL. Each variable that begins with `APP_REDIS_` is a setting.
//! Its key begins with `configured:` and is removed at the end. `Config` needs the feature `serde`.

use std::error::Error;

use config::{Environment, File, FileFormat};
use rediscope::{Config, SessionManager, prelude::*};
use rediscope_examples::keys;
use rediscope_examples::server::PrivateServer;

/// The content of a configuration file.
const FILE: &str = r#"
max_size = 16
min_idle = 1
connect_timeout = "300ms"
response_timeout = "500ms"
checkout_timeout = "2s"
idle_timeout = "off"
"#;

fn main() -> Result<(), Box<dyn Error>> {
    let given = std::env::var("APP_REDIS_URL").or_else(|_| std::env::var("REDIS_URL"));
    // Kept until the end, because its drop stops the server.
    let (_server, url) = match given {
        Ok(url) => (None, url),
        Err(_) => {
            let server = PrivateServer::start()?;
            let url = server.url();
            (Some(server), url)
        }
    };
    let config = read(&url)?;
    println!("{config:?}");
    let sessions = config.builder().build()?;
    let prefix = keys::unique_prefix("configured");
    let shown = show(&sessions, &prefix);
    let removed = keys::remove_all(&url, &prefix);
    // Keys are removed after a failure as well; the first error is returned.
    shown?;
    removed?;
    Ok(())
}

/// Reads the sources; a later one overrides an earlier one.
fn read(url: &str) -> Result<Config, config::ConfigError> {
    config::Config::builder()
        .add_source(File::from_str(FILE, FileFormat::Toml))
        .set_default("url", url)?
        .add_source(Environment::with_prefix("APP_REDIS"))
        .build()?
        .try_deserialize()
}

fn show(sessions: &SessionManager, prefix: &str) -> Result<(), rediscope::Error> {
    let hits = format!("{prefix}hits");
    let hits = sessions.transactional().run(|tx| Ok(tx.incr(&hits, 1)))?;
    let status = sessions.status();
    println!("{hits} hit, over pools of {}", status.transactional.max_size);
    Ok(())
}
