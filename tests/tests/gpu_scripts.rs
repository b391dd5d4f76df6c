//! Dry runs on the CPU of the scripts for GPU machines, so that they work once a GPU is available.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/gpu");

/// Dry run with the programs in `bin`. Returns whether it succeeded, each step with its outcome, and the output.
fn dry_run(script: &str, bin: &Path) -> (bool, Vec<(String, String)>, String) {
    let out = tempfile::tempdir().unwrap();
    let mut command = Command::new("bash");
    command.arg(format!("{SCRIPTS}/{script}.sh")).arg("--dry-run").env("BIN", bin).env("OUT", out.path());
    let output = command.output().unwrap();
    let text = |name: &str| fs::read_to_string(out.path().join(format!("{script}.{name}"))).unwrap();
    let step = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        [&line["step"], &line["outcome"]].map(|value| value.as_str().unwrap().to_owned()).into()
    };
    assert!(fs::read_dir(out.path()).unwrap().count() <= 4, "a GPU machine returns at most eight files");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text("jsonl").lines().map(step).collect(), printed + &text("log"))
}

#[test]
fn every_step_passes_in_a_dry_run() {
    for (script, expected) in [
        (
            "check",
            &[
                "first steps of training",
                "first steps in a group of one",
                "fit",
                "detect without TF32",
                "detect, fp16",
                "evaluate",
                "starts",
            ][..],
        ),
        ("bench", &["train, bfloat16", "detect, fp16 and top-k", "shapes, alternating and grouped"]),
    ] {
        let (succeeded, steps, output) = dry_run(script, &tests::programs());
        assert!(succeeded && steps.iter().all(|(_, outcome)| outcome == "passed"), "{output}");
        for name in expected {
            assert!(steps.iter().any(|(step, _)| step == name), "{script} has no step `{name}`: {steps:?}");
        }
    }
}

#[test]
fn a_failed_step_is_reported_and_later_steps_still_run() {
    let bin = tempfile::tempdir().unwrap();
    let programs = tests::programs();
    for name in ["trainer", "exporter"] {
        symlink(programs.join(name), bin.path().join(name)).unwrap();
    }
    let broken = bin.path().join("runtime");
    let real = programs.join("runtime");
    fs::write(&broken, format!("#!/bin/sh\n[ \"$1\" != detect ] || exit 1\nexec '{}' \"$@\"\n", real.display()))
        .unwrap();
    fs::set_permissions(&broken, fs::Permissions::from_mode(0o755)).unwrap();

    let (succeeded, steps, output) = dry_run("check", bin.path());
    assert!(!succeeded, "{output}");
    for (step, expected) in [
        ("fit", "passed"),
        ("detect on the CPU", "failed"),
        ("detect", "skipped"),
        ("evaluate", "passed"),
        ("starts", "failed"),
    ] {
        let outcome = steps.iter().find(|(name, _)| name == step).map(|(_, outcome)| &outcome[..]);
        assert_eq!(outcome, Some(expected), "{step}: {output}");
    }
}

#[test]
fn libraries_are_thinned_to_one_architecture() {
    let output = Command::new("python3").args(["-B", "-m", "unittest", "discover", "-s", SCRIPTS]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
