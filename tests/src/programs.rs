//! The programs of the project, as the tests and benchmarks find them.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;

/// The folder with the programs that `cargo test --workspace` built: the parent of the test binary's folder `deps`.
///
/// # Panics
/// When a program is missing.
pub fn programs() -> PathBuf {
    let test = std::env::current_exe().expect("a running test has an executable");
    let folder = test.ancestors().nth(2).expect("test binaries are in `deps`").to_owned();
    for name in ["trainer", "exporter", "runtime"] {
        let path = folder.join(name);
        assert!(path.exists(), "{} is missing; build it with `cargo test --workspace`", path.display());
    }
    folder
}

/// Builds `runtime` in release mode and returns its path. For benchmarks.
///
/// # Errors
/// When the build fails.
pub fn release_runtime() -> anyhow::Result<PathBuf> {
    let status =
        Command::new(env!("CARGO")).args(["build", "--release", "--quiet", "--package", "runtime"]).status()?;
    anyhow::ensure!(status.success(), "cannot build `runtime`");
    let bench = std::env::current_exe()?;
    let folder = bench.ancestors().nth(2).context("benchmarks are in `deps`")?;
    Ok(folder.join("runtime"))
}
