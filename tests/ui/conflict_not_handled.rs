use rediscope::{SessionManager, prelude::*};

fn main() -> Result<(), rediscope::Error> {
    let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    let mut tx = accounts.watch(["stock"]).begin()?.multi();
    let left = tx.decr("stock", 1);
    let replies = tx.commit()?;
    println!("{}", replies.get(left)?);
    Ok(())
}
