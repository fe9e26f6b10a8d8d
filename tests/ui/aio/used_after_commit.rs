use rediscope::{aio::SessionManager, prelude::*};

async fn write() -> Result<(), rediscope::Error> {
    let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    let mut tx = accounts.begin().await?;
    tx.set("a", 1);
    tx.commit().await?;
    tx.set("b", 2);
    Ok(())
}

fn main() {
    drop(write());
}
