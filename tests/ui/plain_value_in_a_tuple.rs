use rediscope::{SessionManager, prelude::*};

fn main() -> Result<(), rediscope::Error> {
    let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    let (left, name) = accounts.watch(["stock"]).run(|read, tx| {
        let name: String = read.get("name")?;
        Ok((tx.decr("stock", 1), name))
    })?;
    println!("{left} of {name}");
    Ok(())
}
