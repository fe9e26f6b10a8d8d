use rediscope::{SessionManager, prelude::*};

fn main() -> Result<(), rediscope::Error> {
    let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    let mut tx = accounts.begin()?;
    let mut part = tx.savepoint();
    part.set("a", 1);
    tx.commit()?;
    part.release();
    Ok(())
}
