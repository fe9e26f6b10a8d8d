#![deny(unused_must_use)]

use rediscope::{aio::SessionManager, prelude::*};

fn main() -> Result<(), rediscope::Error> {
    let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    accounts.submit(|tx| Ok(tx.incr("hits", 1)))?;
    Ok(())
}
