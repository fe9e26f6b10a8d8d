use rediscope::aio::SessionManager;

async fn sell() -> Result<(), rediscope::Error> {
    let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    let mut tries = accounts.watch(["stock"]).tries();
    let first = tries.next().await?;
    let second = tries.next().await?;
    first.commit().await?;
    second.commit().await?;
    Ok(())
}

fn main() {
    drop(sell());
}
