use rediscope::{SessionManager, prelude::*};

fn main() -> Result<(), rediscope::Error> {
    let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    let mut watching = accounts.watch(["stock"]).begin()?;
    let stock: i64 = watching.get("stock")?;
    watching.set("stock", stock - 1);
    Ok(())
}
