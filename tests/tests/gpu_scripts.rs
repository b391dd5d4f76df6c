//! Dry runs on the CPU of the scripts for GPU machines, so that they work once a GPU is available.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::fs;
use std::process::Command;

use serde_json::Value;

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/gpu");

/// Dry run of a script, or of the steps in `script`. Returns whether it succeeded, each step with its outcome, and the
/// output.
fn dry_run(name: &str, script: &[&str]) -> (bool, Vec<(String, String)>, String) {
    let out = tempfile::tempdir().unwrap();
    let mut command = Command::new("bash");
    command.args(script).arg("--dry-run").env("BIN", tests::programs()).env("OUT", out.path());
    let output = command.output().unwrap();
    let text = |extension: &str| fs::read_to_string(out.path().join(format!("{name}.{extension}"))).unwrap();
    let step = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        [&line["step"], &line["outcome"]].map(|value| value.as_str().unwrap().to_owned()).into()
    };
    assert!(
        fs::read_dir(out.path()).unwrap().count() <= 4,
        "a GPU machine returns at most eight files, four of each script"
    );
    let printed = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text("jsonl").lines().map(step).collect(), printed + &text("log"))
}

#[test]
fn every_step_passes_in_a_dry_run() {
    for (name, expected) in [
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
        let (succeeded, steps, output) = dry_run(name, &[&format!("{SCRIPTS}/{name}.sh")]);
        assert!(succeeded && steps.iter().all(|(_, outcome)| outcome == "passed"), "{output}");
        for step in expected {
            assert!(steps.iter().any(|(found, _)| found == step), "{name} has no step `{step}`: {steps:?}");
        }
    }
}

#[test]
fn a_failed_step_is_reported_and_later_steps_still_run() {
    let steps = "name=few budget=60; source \"$0/steps.sh\"
        step first 10 touch made; step broken 10 touch none/made; step dependent 10 needs none; step last 10 needs made
        finish";
    let (succeeded, steps, output) = dry_run("few", &["-c", steps, SCRIPTS]);
    assert!(!succeeded, "{output}");
    let expected = [("first", "passed"), ("broken", "failed"), ("dependent", "skipped"), ("last", "passed")];
    assert_eq!(steps, expected.map(|(step, outcome)| (step.to_owned(), outcome.to_owned())), "{output}");
}

#[test]
fn libraries_are_thinned_to_one_architecture() {
    let output = Command::new("python3").args(["-B", "-m", "unittest", "discover", "-s", SCRIPTS]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
