//! Shared by the targets: a memory limit, and temporary files.

use std::alloc::System;
use std::path::{Path, PathBuf};

use cap::Cap;
use tempfile::TempDir;

/// Maximum heap size of Rust code, in bytes. An allocation beyond it aborts the program, which counts as a failure.
pub const MEMORY: usize = 96 << 20;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, MEMORY);

/// A temporary folder in memory, below /dev/shm.
pub struct Scratch(TempDir);

impl Scratch {
    /// Creates an empty folder.
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("fuzz-").tempdir_in("/dev/shm");
        Self(folder.expect("/dev/shm is writable"))
    }

    /// The path of `name` in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file with this content and returns its path.
    pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).expect("the folder is writable");
        std::fs::write(&path, content).expect("/dev/shm has room");
        path
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}
