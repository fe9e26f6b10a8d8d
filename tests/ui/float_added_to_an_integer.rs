use rediscope::{Error, SessionManager, prelude::*};

fn main() -> Result<(), Error> {
    let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    let price: f32 = 0.5;
    accounts.run(|tx| {
        tx.incr("n", 1.5);
        tx.decr("n", price);
        tx.hincr("h", "field", &1.5_f64);
        Ok(())
    })
}
