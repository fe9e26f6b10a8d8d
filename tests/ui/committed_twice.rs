use rediscope::{SessionManager, prelude::*};

fn main() -> Result<(), rediscope::Error> {
    let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    let mut tx = accounts.begin()?;
    tx.set("a", 1);
    tx.discard()?;
    tx.commit()?;
    Ok(())
}
