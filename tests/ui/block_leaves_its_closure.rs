use rediscope::SessionManager;

fn main() -> Result<(), rediscope::Error> {
    let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    let mut kept = None;
    accounts.run(|tx| {
        kept = Some(tx);
        Ok(())
    })?;
    Ok(())
}
