use rediscope::{SessionManager, prelude::*, redis};

fn main() -> Result<(), rediscope::Error> {
    let mut db = SessionManager::connect("redis://127.0.0.1/")?.pooled();
    let _ = db.queue::<i64>(redis::cmd("INCR").arg("hits").take());
    Ok(())
}
