//! Snapshots of every command's `--help`, so that its wording is reviewed like code.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Environment variable: when set, the snapshots are rewritten instead of compared.
const UPDATE: &str = "UPDATE_HELP";

/// The help text for these arguments, wrapped at 100 columns whatever the terminal.
fn help(program: &Path, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).arg("--help").env("COLUMNS", "100").output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The commands listed in a help text.
fn commands(help: &str) -> Vec<String> {
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = list.filter(|line| !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

#[test]
fn help_texts_match_their_snapshots() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("help");
    let mut texts = Vec::new();
    for name in ["trainer", "exporter", "runtime"] {
        let program = tests::programs().join(name);
        let whole = help(&program, &[]);
        let commands = commands(&whole);
        assert_eq!(commands.is_empty(), name == "exporter", "{whole}");
        texts.push((format!("{name}.txt"), whole));
        texts.extend(commands.iter().map(|command| (format!("{name}-{command}.txt"), help(&program, &[command]))));
    }
    let files: BTreeSet<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let expected: BTreeSet<_> = texts.iter().map(|(file, _)| file.into()).collect();
    let update = std::env::var_os(UPDATE).is_some();
    assert!(update || files == expected, "the files in {} do not match the commands", folder.display());
    for (file, text) in texts {
        let path = folder.join(&file);
        if update {
            fs::write(&path, text).unwrap();
            continue;
        }
        let reviewed = fs::read_to_string(&path).unwrap();
        let differing = text.lines().zip(reviewed.lines()).find(|(actual, expected)| actual != expected);
        assert!(
            text == reviewed,
            "`--help` differs from help/{file}: {differing:?}; to accept: {UPDATE}=1 cargo test -p tests --test help"
        );
    }
}
