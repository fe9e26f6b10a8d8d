#![deny(unused_must_use)]

use rediscope::{SessionManager, prelude::*};

fn main() -> Result<(), rediscope::Error> {
    let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    let mut tx = accounts.begin()?;
    tx.savepoint();
    tx.commit()?;
    Ok(())
}
