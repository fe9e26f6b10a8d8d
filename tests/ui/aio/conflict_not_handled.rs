use rediscope::{aio::SessionManager, prelude::*};

async fn sell() -> Result<(), rediscope::Error> {
    let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    let mut tx = accounts.watch(["stock"]).begin().await?.multi();
    let left = tx.decr("stock", 1);
    let replies = tx.commit().await?;
    println!("{}", replies.get(left)?);
    Ok(())
}

fn main() {
    drop(sell());
}
