//! Command lines of the programs.

use clap::{Arg, Command, Parser};

use crate::progress::{Verbosity, set_verbosity};

/// The flags that all programs have.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct CommonArgs {
    /// Print only results, warnings and errors, no progress.
    #[arg(long, short, global = true, conflicts_with = "verbose")]
    quiet: bool,

    /// Also print which libraries, devices, files and settings are used.
    #[arg(long, short, global = true)]
    verbose: bool,
}

impl CommonArgs {
    /// Sets how much this process prints.
    pub fn apply(self) {
        set_verbosity(match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (_, true) => Verbosity::Verbose,
            _ => Verbosity::Normal,
        });
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
