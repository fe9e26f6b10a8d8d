use rediscope::{SessionManager, prelude::*};

fn main() -> Result<(), rediscope::Error> {
    let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    let order = accounts.run(|tx| {
        tx.decr("stock", 1);
        Ok(4711)
    })?;
    println!("{order}");
    Ok(())
}
