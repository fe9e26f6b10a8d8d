use std::rc::Rc;

use rediscope::{aio::SessionManager, prelude::*};

async fn sell() -> Result<i64, rediscope::Error> {
    let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    let key = Rc::new("stock");
    accounts.run(|tx| Ok(tx.decr(*key, 1))).await
}

fn main() {
    drop(sell());
}
