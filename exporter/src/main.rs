//! The program `exporter`.

mod args;
mod memory;

use std::io::ErrorKind;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use exporter::{
    ExportError, Exported, OutputFile, PrecisionReport, Sensitivity, Summary, describe, export, with_commas,
};
use models::{Checkpoint, CheckpointError, Provenance};
use runtime::cli;
use runtime::output::print;
use runtime::progress::{self, Progress, detail};
use runtime::{EngineOptions, interrupt, library};

use args::Args;

/// Exit code when the AP drops by more than `--max-ap-drop`.
const AP_DROP_EXIT_CODE: u8 = 3;

/// Error context of printing.
const CANNOT_PRINT: &str = "cannot write to stdout";

fn main() -> ExitCode {
    runtime::library::disable_telemetry();
    memory::return_large_blocks();
    let args: Args = cli::parse(Vec::new);
    args.common.apply();
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            progress::error(format_args!("{error:#}"));
            match error.downcast_ref() {
                Some(ExportError::ApDrop { .. }) => ExitCode::from(AP_DROP_EXIT_CODE),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    if let Some(path) = &args.describe {
        let text = describe(path).with_context(|| format!("cannot describe `{}`", path.display()))?;
        return print(text.trim_end()).context(CANNOT_PRINT);
    }
    ensure!(args.out != Path::new("-"), "an ONNX file cannot be written to stdout; choose a file with --out");
    args.precision.check()?;
    let start = Instant::now();
    // First, so that a target that cannot be written is reported at once.
    let file = create(&args)?;
    let out = file.target().to_owned();
    interrupt::watch()?;
    interrupt::delete_at_exit(file.folder());
    let mut options = args.precision.options(args.variant.options(), args.file.options(&out))?;
    options.providers.clone_from(&args.prove);
    let checkpoint = open(&args.checkpoint)?;
    let summary = Summary::new(&options.variant.spec(&checkpoint.spec)?)?;
    if args.summary {
        print(&summary.to_string()).context(CANNOT_PRINT)?;
    }
    if progress::is_verbose() {
        let Provenance { program, epoch, ap, .. } = &checkpoint.provenance;
        let epoch = epoch.map_or_else(String::new, |epoch| format!(", epoch {epoch}"));
        let ap = ap.map_or_else(String::new, |ap| format!(", AP {ap:.4}"));
        detail(format_args!("checkpoint: `{}`, written by {program}{epoch}{ap}", args.checkpoint.display()));
        detail(format_args!("library: {}", library::find(args.onnxruntime.as_deref())?));
    }
    let engine = EngineOptions { onnxruntime: args.onnxruntime.clone(), ..EngineOptions::default() };
    let mut shown = None;
    let mut on_progress = |done: usize, count: usize| {
        let progress = shown.get_or_insert_with(|| Progress::new(Some(count), false));
        progress.advance();
        if done == count {
            shown = None;
        }
    };
    let exported = export(checkpoint, file, &options, &engine, &mut on_progress)
        .with_context(|| format!("cannot export `{}` to `{}`", args.checkpoint.display(), out.display()))?;
    if progress::is_quiet() {
        return Ok(());
    }
    print(&report(&args, &out, &summary, &exported, start.elapsed())).context(CANNOT_PRINT)
}

fn create(args: &Args) -> anyhow::Result<OutputFile> {
    match &args.repository {
        Some(repository) => OutputFile::in_repository(repository, &args.model_name).with_context(|| {
            format!("cannot write to `{}`; choose another folder with --repository", repository.display())
        }),
        None => OutputFile::create(&args.out).with_context(|| {
            format!("cannot write `{}`; create its folder, or choose another file with --out", args.out.display())
        }),
    }
}

fn open(path: &Path) -> anyhow::Result<Checkpoint> {
    Checkpoint::open(path).map_err(|error| match error {
        CheckpointError::Io { error, .. } if error.kind() == ErrorKind::NotFound => anyhow::anyhow!(
            "checkpoint `{}` not found; train one with `trainer fit`, or choose another one with --checkpoint",
            path.display()
        ),
        error => error.into(),
    })
}

/// The report of an export, without a final newline.
fn report(args: &Args, out: &Path, summary: &Summary, exported: &Exported, time: Duration) -> String {
    let Exported { bytes, differences, precision_report, variant_differences, ap, proven } = exported;
    let size = match args.variant.input_size {
        Some(_) => "height x width",
        None => "height x width: the spec's shorter and longer side, padded",
    };
    let mut lines = vec![
        out.display().to_string(),
        format!("  parameters   {}", with_commas(summary.parameters())),
        format!(
            "  computation  {:.1} GFLOPs at {}x{} ({size}); a multiply-add counts as one FLOP, as in torchvision and fvcore",
            summary.giga_multiply_adds(),
            summary.height,
            summary.width
        ),
        format!("  file size    {:.1} MB", *bytes as f64 / 1e6),
        format!("  verified     error of ONNX Runtime is {differences}"),
    ];
    lines.extend(proven.iter().map(|(provider, report)| match report {
        Ok(report) => format!("  on {:<10}{report}", provider.to_string()),
        Err(reason) => format!("  on {:<10}not proven: {reason}", provider.to_string()),
    }));
    if let Some(differences) = variant_differences {
        lines.push(format!("  variant      differs from the plain file by {differences}"));
    }
    let precision = args.precision.precision;
    if let Some(PrecisionReport { converted, comparison, fp32_ap }) = precision_report {
        lines.push(format!("  {precision:<12} differs from fp32: {comparison}"));
        if !converted.float_layers.is_empty() {
            lines.push(format!("  fp32 layers  {}", converted.float_layers.join(", ")));
        }
        if let (Some(ap), Some(fp32_ap)) = (ap, fp32_ap) {
            lines.push(format!("  AP           {ap:.4} (fp32 {fp32_ap:.4}, {:+.4})", ap - fp32_ap));
        }
        if !converted.sensitivity.is_empty() {
            lines.push(
                "  sensitivity  relative RMS error of scores and offsets with only this layer in int8".to_owned(),
            );
            let line = |layer: &Sensitivity| {
                format!("    {:<34}{:>8.3} %{:>8.3} %", layer.layer, 100.0 * layer.scores, 100.0 * layer.offsets)
            };
            lines.extend(converted.sensitivity.iter().map(line));
        }
    } else if let Some(ap) = ap {
        lines.push(format!("  AP           {ap:.4}"));
    }
    lines.push(format!("  time         {:.1} s", time.as_secs_f64()));
    lines.join("\n")
}
