#![deny(unused_must_use)]

use rediscope::{aio::SessionManager, prelude::*};

async fn write() -> Result<(), rediscope::Error> {
    let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    accounts.run(|tx| Ok(tx.incr("hits", 1)));
    Ok(())
}

fn main() {
    drop(write());
}
