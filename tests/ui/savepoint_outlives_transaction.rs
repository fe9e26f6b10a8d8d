use rediscope::{Savepoint, SessionManager, Transactional, prelude::*};

fn part(accounts: &Transactional) -> Result<Savepoint<'_>, rediscope::Error> {
    let mut tx = accounts.begin()?;
    Ok(tx.savepoint())
}

fn main() -> Result<(), rediscope::Error> {
    let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    part(&accounts)?.release();
    Ok(())
}
