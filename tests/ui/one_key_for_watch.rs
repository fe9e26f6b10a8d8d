use rediscope::SessionManager;

fn main() -> Result<(), rediscope::Error> {
    let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    let watching = accounts.watch("stock").begin()?;
    watching.abandon()
}
