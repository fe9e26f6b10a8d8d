//! The folder of one server's files.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use tempfile::TempDir;

/// A folder for a server's files, in memory if there is enough of it. Cluster nodes and sentinels
/// wait for the disk at each change, and on a busy disk they look dead.
pub(crate) fn home() -> io::Result<TempDir> {
    static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
        let memory = PathBuf::from("/dev/shm");
        if free_bytes(&memory) >= 1 << 30 { memory } else { std::env::temp_dir() }
    });
    tempfile::Builder::new().prefix("redis-").tempdir_in(&*FOLDER)
}

/// Space left in the file system of `folder`, by `df`; 0 if that fails.
fn free_bytes(folder: &Path) -> u64 {
    let Ok(output) = Command::new("df").arg("-Pk").arg(folder).output() else { return 0 };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let free = text.lines().nth(1).and_then(|line| line.split_whitespace().nth(3));
    free.and_then(|kib| kib.parse::<u64>().ok()).map_or(0, |kib| kib << 10)
}
