use rediscope::{SessionManager, prelude::*};

fn main() -> Result<(), rediscope::Error> {
    let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    let mut tx = accounts.begin()?;
    let part = tx.savepoint();
    tx.set("a", 1);
    part.release();
    tx.commit()?;
    Ok(())
}
