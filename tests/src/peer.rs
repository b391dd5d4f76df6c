//! Peers: scripts in `peer/` that run other projects' code for comparison. They read and write one JSON value per line.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::Context;
use serde_json::Value;

/// A Python process that runs one of the scripts. Dropping this kills it.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts the script `script` of the folder `peer`.
    ///
    /// # Errors
    /// When `python` cannot be run.
    pub fn start(python: &str, script: &str, arguments: &[&Path]) -> anyhow::Result<Self> {
        let mut command = Command::new(python);
        command.arg(Self::script(script)).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        // The peer has the usual allocator, also where the benchmark has started itself again with another one.
        command.env_remove("GLIBC_TUNABLES");
        let mut child = command.spawn().with_context(|| format!("cannot run `{python}`"))?;
        let stdin = child.stdin.take().context("stdin is piped")?;
        let stdout = BufReader::new(child.stdout.take().context("stdout is piped")?);
        Ok(Self { child, stdin, stdout })
    }

    /// Path of a script.
    pub fn script(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("peer").join(name)
    }

    /// Sends a request and waits for the response.
    ///
    /// # Errors
    /// When the script has exited or its response is not JSON.
    pub fn request(&mut self, request: &Value) -> anyhow::Result<Value> {
        writeln!(self.stdin, "{request}").context("the peer has exited")?;
        let mut response = String::new();
        self.stdout.read_line(&mut response)?;
        serde_json::from_str(&response).context("the peer has exited or its response is not JSON")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The median of measured times, with which programs and peers are compared.
///
/// # Panics
/// When there are none.
pub fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
