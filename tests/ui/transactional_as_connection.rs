use rediscope::{SessionManager, prelude::*};

fn main() -> Result<(), rediscope::Error> {
    let mut accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    let _: i64 = accounts.get("balance:alice")?;
    Ok(())
}
