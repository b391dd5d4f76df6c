//! The program `exporter`.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use exporter::{Exported, OFFSET_TOLERANCE, SCORE_TOLERANCE, Summary, describe, export, grouped};
use models::{AtomicFile, Checkpoint, CheckpointError};
use runtime::EngineOptions;
use runtime::output::print;

/// Turns a checkpoint into an ONNX file.
///
/// Batch normalization becomes part of the convolutions; batch size, height and width stay free. The file carries the
/// spec, so that `runtime` needs nothing else. Before it gets its name, ONNX Runtime computes the checkpoint's probe with
/// it and must agree with what libtorch said; otherwise nothing is written.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// ONNX file to write; one that exists is replaced.
    #[arg(long, value_name = "FILE", default_value = "retinanet.onnx")]
    out: PathBuf,

    /// Checkpoint to export, as `trainer` writes it.
    #[arg(long, value_name = "FILE", default_value = "runs/latest/best.safetensors")]
    checkpoint: PathBuf,

    /// Also print the layers with the shapes of their outputs, their parameters and their GFLOPs.
    #[arg(long)]
    summary: bool,

    /// Only print what is in this ONNX file, and how to use it without our programs.
    #[arg(long, value_name = "FILE", exclusive = true)]
    describe: Option<PathBuf>,

    /// ONNX Runtime's library [default: ORT_DYLIB_PATH, beside this program, .deps/onnxruntime/lib, the system's].
    #[arg(long, value_name = "FILE")]
    onnxruntime: Option<PathBuf>,
}

/// What could not be done when printing fails.
const STDOUT: &str = "cannot write to stdout";

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    if let Some(path) = &args.describe {
        let text = describe(path).with_context(|| format!("cannot describe `{}`", path.display()))?;
        return print(text.trim_end()).context(STDOUT);
    }
    let start = Instant::now();
    // First of all, so that a folder that can't be written costs no one a wait.
    let file = AtomicFile::create(&args.out)
        .with_context(|| format!("cannot write `{}`; make its folder, or give another --out", args.out.display()))?;
    let checkpoint = open(&args.checkpoint)?;
    let summary = Summary::new(&checkpoint.spec)?;
    if args.summary {
        print(&summary.to_string()).context(STDOUT)?;
    }
    let engine = EngineOptions { onnxruntime: args.onnxruntime, ..EngineOptions::default() };
    let Exported { bytes, differences } = export(checkpoint, file, &engine)
        .with_context(|| format!("cannot export `{}` to `{}`", args.checkpoint.display(), args.out.display()))?;

    print(&format!(
        "{}\n  parameters   {}\n  computation  {:.1} GFLOPs at {}x{} (height x width: the spec's shorter and longer side, \
         padded); a multiplication with its addition counts once, as torchvision and fvcore count\n  file size    {:.1} MB\n  \
         proof        ONNX Runtime differs from libtorch by at most {:.1e} in scores (allowed {SCORE_TOLERANCE:e}) and \
         {:.1e} in offsets (allowed {OFFSET_TOLERANCE:e})\n  time         {:.1} s",
        args.out.display(),
        grouped(summary.parameters()),
        summary.giga_multiply_adds(),
        summary.height,
        summary.width,
        bytes as f64 / 1e6,
        differences.scores,
        differences.offsets,
        start.elapsed().as_secs_f64()
    ))
    .context(STDOUT)
}

fn open(path: &Path) -> anyhow::Result<Checkpoint> {
    Checkpoint::open(path).map_err(|error| match error {
        CheckpointError::Io { error, .. } if error.kind() == ErrorKind::NotFound => anyhow::anyhow!(
            "there is no checkpoint `{}`; `trainer fit` makes runs/latest/best.safetensors, --checkpoint names another",
            path.display()
        ),
        error => error.into(),
    })
}
