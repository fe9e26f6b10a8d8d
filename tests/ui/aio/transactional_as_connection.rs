use rediscope::aio::SessionManager;
use rediscope::redis::AsyncCommands;

async fn read() -> Result<i64, rediscope::Error> {
    let mut accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    Ok(accounts.get("balance:alice").await?)
}

fn main() {
    drop(read());
}
