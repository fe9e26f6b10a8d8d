use rediscope::{aio::SessionManager, prelude::*};

async fn count() -> Result<i64, rediscope::Error> {
    let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    let mut attempts = 0;
    let count = &mut attempts;
    accounts
        .watch(["stock"])
        .run(async move |read, tx| {
            *count += 1;
            let stock: i64 = read.get("stock").await?;
            Ok(tx.decr("stock", stock.min(1)))
        })
        .await
}

fn main() {
    drop(count());
}
