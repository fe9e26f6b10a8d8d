#![deny(unused_must_use)]

use rediscope::{Condition, SessionManager};

fn main() -> Result<(), rediscope::Error> {
    let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    accounts.require(Condition::exists("stock"));
    Ok(())
}
