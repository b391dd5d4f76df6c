//! `runtime`: detects objects in images and videos, and evaluates the results.

mod bench;
mod detect;
mod doctor;
mod eval;
mod info;
mod score;
#[cfg(feature = "serve")]
mod serve;

mod detector_args;
mod model_args;
mod rule_args;
mod value_parsers;
mod paths;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use runtime::cli::{self, CommonArgs};
use runtime::evaluation_report::EvaluationReport;
use runtime::output::detections_schema;
use runtime::schema::{Schemas, written};
use runtime::{interrupt, progress};

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
    #[cfg(feature = "serve")]
    Serve(serve::ServeArgs),
    Eval(eval::EvalArgs),
    Bench(bench::BenchArgs),
    Info(info::InfoArgs),
    Doctor(doctor::DoctorArgs),
    Score(score::ScoreArgs),
}

fn run(command: Command) -> Result<ExitCode> {
    // The server has signals of its own.
    #[cfg(feature = "serve")]
    let is_server = matches!(command, Command::Serve(_));
    #[cfg(not(feature = "serve"))]
    let is_server = false;
    if !is_server {
        interrupt::watch()?;
    }
    match command {
        Command::Detect(args) => detect::run(&args),
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::run(args).map(|()| ExitCode::SUCCESS),
        Command::Info(args) => info::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Doctor(args) => doctor::run(&args),
        Command::Bench(args) => bench::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Eval(args) => eval::run(args).map(|()| ExitCode::SUCCESS),
        Command::Score(args) => score::run(args).map(|()| ExitCode::SUCCESS),
    }
}

/// The schemas of what the commands write.
fn schemas() -> Schemas {
    vec![
        ("detections", detections_schema()),
        ("evaluation", written::<EvaluationReport>()),
        ("bench", written::<bench::Measurements>()),
        ("info", written::<info::Info>()),
        ("doctor", written::<doctor::Health>()),
    ]
}

fn main() -> ExitCode {
    runtime::library::disable_telemetry();
    #[cfg(feature = "serve")]
    let args: Args = cli::parse_with(schemas, serve::with_environment);
    #[cfg(not(feature = "serve"))]
    let args: Args = cli::parse(schemas);
    args.common.apply();
    run(args.command).unwrap_or_else(|error| {
        progress::error(format_args!("{error:#}"));
        ExitCode::FAILURE
    })
}
