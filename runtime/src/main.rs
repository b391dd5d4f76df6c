//! `runtime`: finds objects in images, and says how well.

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
use runtime::output::Target;

/// Detect objects with RetinaNet models in ONNX files.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
#[command(after_help = "Exit codes: 0 success, 1 error, 2 wrong usage, 3 finished, but some images failed")]
struct Args {
    #[command(subcommand)]
    command: Command,
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

/// The exit code of a run in which some images failed and the others went on.
const SOME_FAILED: u8 = 3;

/// What could not be done; `-` is stdout.
fn cannot_write(path: &Path) -> String {
    format!("cannot write {}", Target::name(path))
}

/// Parses a number from 1 to `most`.
fn up_to(most: usize) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=most as u64)
}

fn main() -> ExitCode {
    runtime::library::disable_telemetry();
    let result = match Args::parse().command {
        Command::Detect(args) => detect::run(&args),
        Command::Serve(args) => serve::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Info(args) => info::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Doctor(args) => doctor::run(&args),
        Command::Bench(args) => bench::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Eval(args) => eval::run(args).map(|()| ExitCode::SUCCESS),
        Command::Score(args) => score::run(args).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        runtime::progress::say(format_args!("error: {error:#}"));
        ExitCode::FAILURE
    })
}
