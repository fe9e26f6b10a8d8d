use rediscope::{aio::SessionManager, prelude::*};

async fn write() -> Result<(), rediscope::Error> {
    let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    let mut watching = accounts.watch(["a"]).begin().await?;
    watching.set("a", 1);
    Ok(())
}

fn main() {
    drop(write());
}
