#![deny(unused_must_use)]

use std::time::Duration;

use rediscope::aio::SessionManager;

async fn report() -> Result<(), rediscope::Error> {
    let sessions = SessionManager::connect("redis://127.0.0.1/")?;
    sessions.lock("report").acquire(Duration::from_secs(1)).await?;
    Ok(())
}

fn main() {
    drop(report());
}
