use rediscope::{SessionManager, prelude::*};

fn main() -> Result<(), rediscope::Error> {
    let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    let hits = accounts.run(|tx| {
        let step: i64 = "1".parse()?;
        Ok(tx.incr("hits", step))
    })?;
    println!("{hits}");
    Ok(())
}
