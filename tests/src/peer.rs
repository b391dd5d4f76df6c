//! Programs of others, which benchmarks measure beside ours: scripts in `peer/` that answer lines of JSON.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::Context;
use serde_json::Value;

/// A Python that runs one of the scripts; it is killed when this is dropped.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    asked: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts the script with this name.
    ///
    /// # Errors
    /// When Python can't be run.
    pub fn start(python: &str, script: &str, arguments: &[&Path]) -> anyhow::Result<Self> {
        let mut command = Command::new(python);
        command.arg(Self::script(script)).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("can't run {python}"))?;
        let asked = child.stdin.take().context("stdin is piped")?;
        let answers = BufReader::new(child.stdout.take().context("stdout is piped")?);
        Ok(Self { child, asked, answers })
    }

    /// Where the script with this name lies.
    pub fn script(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("peer").join(name)
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// When the script has ended.
    pub fn ask(&mut self, question: &Value) -> anyhow::Result<Value> {
        writeln!(self.asked, "{question}").context("the peer has ended")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        serde_json::from_str(&answer).context("the peer has ended")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
