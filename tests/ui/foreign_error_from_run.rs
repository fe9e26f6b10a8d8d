use rediscope::{Error, SessionManager, prelude::*};

#[derive(Debug)]
enum BankError {
    Broke,
    Redis(Error),
}

impl From<Error> for BankError {
    fn from(error: Error) -> Self {
        Self::Redis(error)
    }
}

fn main() -> Result<(), BankError> {
    let accounts =
        SessionManager::connect("redis://127.0.0.1/").map_err(Error::from)?.transactional();
    let left = accounts.watch(["balance:alice"]).run(|read, tx| {
        let alice: i64 = read.get("balance:alice")?;
        if alice < 30 {
            return Err(BankError::Broke);
        }
        Ok(tx.decr("balance:alice", 30))
    })?;
    println!("{left}");
    Ok(())
}
