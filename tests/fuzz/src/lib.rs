//! What the targets share: a limit on memory, and files to read from.

use std::alloc::System;
use std::path::{Path, PathBuf};

use cap::Cap;
use tempfile::TempDir;

/// Bytes that Rust code may hold at a time. An allocation beyond is refused, which ends the program and counts as found.
pub const MEMORY: usize = 96 << 20;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, MEMORY);

/// A folder in memory that goes away with the program.
pub struct Scratch(TempDir);

impl Scratch {
    /// An empty folder.
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("fuzz-").tempdir_in("/dev/shm");
        Self(folder.expect("/dev/shm can be written to"))
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A file with this content.
    pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).expect("the folder is ours");
        std::fs::write(&path, content).expect("/dev/shm has room");
        path
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}
