//! Command lines of the programs.

use std::path::{Path, PathBuf};
use std::{fs, io};

use clap::{Arg, ArgAction, Command, Parser, value_parser};
use clap_complete::Shell;

use crate::log::{self, LogFormat};
use crate::progress::error;
use crate::schema::Schemas;

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
/// errors, after `--help`, and after `--generate`, which also writes the `schemas`.
pub fn parse<A: Parser>(schemas: fn() -> Schemas) -> A {
    parse_with(schemas, |command| command)
}

/// As [`parse`], with a change to the command, such as environment variables for its flags.
pub fn parse_with<A: Parser>(schemas: fn() -> Schemas, change: impl FnOnce(Command) -> Command) -> A {
    let numbers = |arg: Arg| {
        let is_option = arg.get_action().takes_values() && !arg.is_positional();
        if is_option { arg.allow_negative_numbers(true) } else { arg }
    };
    let mut command = change(A::command()).mut_args(numbers).mut_subcommands(|command| command.mut_args(numbers));
    if std::env::args_os().nth(1).is_some_and(|first| first.as_encoded_bytes().starts_with(GENERATE.as_bytes())) {
        exit_after_generating(command, &schemas());
    }
    command = command.arg(generate_arg());
    A::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit())
}

const GENERATE: &str = "--generate";

fn generate_arg() -> Arg {
    Arg::new("generate")
        .long("generate")
        .value_name("DIR")
        .value_parser(value_parser!(PathBuf))
        .exclusive(true)
        .help("Only write man pages, completions for bash, zsh and fish, and JSON schemas into this folder")
}

fn exit_after_generating(command: Command, schemas: &Schemas) -> ! {
    // The program's own command line may require a subcommand, so `--generate` is parsed by itself.
    let only = Command::new("generate").bin_name(command.get_name()).arg(generate_arg().required(true));
    let folder: PathBuf = only.get_matches().remove_one("generate").expect("clap requires it");
    match generate(command, schemas, &folder) {
        Ok(()) => std::process::exit(0),
        Err(reason) => {
            log::print(0, LogFormat::Text);
            error(format_args!("cannot write to `{}`: {reason}", folder.display()));
            std::process::exit(1)
        }
    }
}

/// Writes the man pages `NAME.1` and `NAME-COMMAND.1`, completions under the names that the shells look for, and
/// `schemas/NAME.json`.
fn generate(mut command: Command, schemas: &Schemas, folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    clap_mangen::generate_to(command.clone(), folder)?;
    let name = command.get_name().to_owned();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command, &name, folder)?;
    }
    if !schemas.is_empty() {
        fs::create_dir_all(folder.join("schemas"))?;
    }
    schemas.iter().try_for_each(|(name, schema)| {
        let text = serde_json::to_string_pretty(schema)? + "\n";
        fs::write(folder.join("schemas").join(name).with_extension("json"), text)
    })
}
