use rediscope::{SessionManager, prelude::*};

fn pay(tx: &mut impl QueueCommands) {
    tx.decr("balance:alice", 30);
}

fn main() -> Result<(), rediscope::Error> {
    let mut db = SessionManager::connect("redis://127.0.0.1/")?.pooled();
    pay(&mut db);
    Ok(())
}
