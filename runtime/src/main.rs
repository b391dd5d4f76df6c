//! `runtime`: detects objects in images and videos, and evaluates the results.

mod bench;
mod detect;
mod doctor;
mod eval;
mod info;
mod score;
mod serve;

mod detector_args;
mod model_args;
mod rule_args;
mod interrupt;

use std::path::Path;
use std::process::ExitCode;

use clap::builder::RangedU64ValueParser;
use clap::{Parser, Subcommand};
use runtime::cli::{self, CommonArgs};
use runtime::output::Target;
use runtime::progress;

/// Detect objects with RetinaNet models in ONNX files.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
#[command(after_help = "Exit codes: 0 success, 1 error, 2 wrong usage, 3 finished, but some images failed")]
struct Args {
    #[command(subcommand)]
    command: Command,

    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    Detect(detect::DetectArgs),
    Serve(serve::ServeArgs),
    Eval(eval::EvalArgs),
    Bench(bench::BenchArgs),
    Info(info::InfoArgs),
    Doctor(doctor::DoctorArgs),
    Score(score::ScoreArgs),
}

/// Exit code of a run that finished although some images failed.
const SOME_FAILED: u8 = 3;

/// Error context for an output that cannot be written; `-` is stdout.
fn cannot_write(path: &Path) -> String {
    format!("cannot write {}", Target::name(path))
}

/// The path to read: `-` is stdin.
fn or_stdin(path: &Path) -> &Path {
    if path == Path::new("-") { Path::new("/dev/stdin") } else { path }
}

/// Parses a number from 1 to `max`.
fn up_to(max: usize) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=max as u64)
}

fn main() -> ExitCode {
    runtime::library::disable_telemetry();
    let args: Args = cli::parse();
    args.common.apply();
    let result = match args.command {
        Command::Detect(args) => detect::run(&args),
        Command::Serve(args) => serve::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Info(args) => info::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Doctor(args) => doctor::run(&args),
        Command::Bench(args) => bench::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Eval(args) => eval::run(args).map(|()| ExitCode::SUCCESS),
        Command::Score(args) => score::run(args).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        progress::error(format_args!("{error:#}"));
        ExitCode::FAILURE
    })
}
