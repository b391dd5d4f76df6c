//! The program `trainer`.

use std::process::ExitCode;

use anyhow::anyhow;
use clap::{Parser, Subcommand};
use runtime::cli::{self, CommonArgs};
use runtime::progress;
use trainer::interrupt::{self, Interrupted};
use trainer::{bench, check, eval, failure, fit, import, init, memory, report, synth};

/// Exit code of `check` when training would refuse the data or stop at an image.
const UNSOUND_DATA: u8 = 3;

/// Train RetinaNet object detectors.
#[derive(Parser, Debug)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,

    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Subcommand, Debug)]
enum Command {
    Init(init::InitArgs),
    Synth(synth::SynthArgs),
    Check(check::CheckArgs),
    Fit(fit::FitArgs),
    Eval(eval::EvalArgs),
    Report(report::ReportArgs),
    Import(import::ImportArgs),
    Bench(bench::BenchArgs),
}

fn main() -> ExitCode {
    runtime::library::disable_telemetry();
    memory::restart_with_huge_pages();
    let args: Args = cli::parse(trainer::schemas);
    args.common.apply();
    let result = failure::catch(|| run(&args.command));
    let code = match result.unwrap_or_else(|error| Err(anyhow!("libtorch failed: {error}"))) {
        Ok(code) => return code,
        Err(error) => {
            progress::error(format_args!("{error:#}"));
            if error.is::<Interrupted>() { interrupt::EXIT_CODE } else { 1 }
        }
    };
    ExitCode::from(code)
}

fn run(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Init(args) => init::run(args)?,
        Command::Check(args) => return Ok(if check::run(args)? { ExitCode::SUCCESS } else { UNSOUND_DATA.into() }),
        Command::Synth(args) => synth::run(args)?,
        Command::Fit(args) => fit::run(args)?,
        Command::Eval(args) => eval::run(args)?,
        Command::Report(args) => report::run(args)?,
        Command::Import(args) => import::run(args)?,
        Command::Bench(args) => bench::run(args)?,
    }
    Ok(ExitCode::SUCCESS)
}
