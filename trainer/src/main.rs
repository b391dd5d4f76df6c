//! The program `trainer`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use trainer::{bench, fit, init, memory, synth};

/// Train RetinaNet: data in, checkpoint out.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Init(init::InitArgs),
    Synth(synth::SynthArgs),
    Fit(fit::FitArgs),
    Bench(bench::BenchArgs),
}

fn main() -> ExitCode {
    memory::keep();
    let result = match Arguments::parse().command {
        Command::Init(args) => init::run(&args),
        Command::Synth(args) => synth::run(&args),
        Command::Fit(args) => fit::run(&args),
        Command::Bench(args) => bench::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
