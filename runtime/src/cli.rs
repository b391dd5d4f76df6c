//! Command lines of the programs.

use clap::{Arg, ArgAction, Command, Parser};

use crate::log::{self, LogFormat};

/// The flags that all programs have.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct CommonArgs {
    /// Print only results, warnings and errors, no progress.
    #[arg(long, short, global = true, conflicts_with = "verbose")]
    quiet: bool,

    /// Also print which libraries, devices, files and settings are used, and ONNX Runtime's warnings; -vv also the time of each
    /// stage, -vvv everything.
    #[arg(long, short, global = true, action = ArgAction::Count)]
    verbose: u8,

    /// Format of what is printed on stderr: lines of text, or a JSON object per line.
    #[arg(long, global = true, value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

impl CommonArgs {
    /// Prints messages and progress of this process on stderr from now on.
    pub fn apply(self) {
        log::print(if self.quiet { -1 } else { self.verbose.min(3) as i8 }, self.log_format);
    }
}

/// Parses the command line of this process. `--flag -1` passes -1, so that the flag can say which numbers it takes. Exits on
/// errors and after `--help`.
pub fn parse<A: Parser>() -> A {
    parse_with(|command| command)
}

/// As [`parse`], with a change to the command, such as environment variables for its flags.
pub fn parse_with<A: Parser>(change: impl FnOnce(Command) -> Command) -> A {
    let numbers = |arg: Arg| {
        let is_option = arg.get_action().takes_values() && !arg.is_positional();
        if is_option { arg.allow_negative_numbers(true) } else { arg }
    };
    let command = change(A::command()).mut_args(numbers).mut_subcommands(|command| command.mut_args(numbers));
    A::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit())
}
