use rediscope::{SessionManager, redis};

fn main() -> Result<(), rediscope::Error> {
    let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    let mut watching = accounts.watch(["stock"]).begin()?;
    let _: () = redis::cmd("SET").arg("stock").arg(1).query(&mut watching)?;
    Ok(())
}
