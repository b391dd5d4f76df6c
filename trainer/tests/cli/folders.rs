//! The folders of runs.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use models::Checkpoint;
use serde_json::json;

use crate::project::{CONFIG, Project, assert_contains, command, stderr};

#[test]
fn unusable_folders_are_reported_before_training() {
    let project = Project::with_run();
    fs::write(project.path().join("file"), b"").unwrap();
    assert_contains(&project.refused(&["--out", "file/run"]), &["file/run"]);
    assert_contains(&project.refused(&["--out", "run"]), &["already contains a run", "--resume"]);
}

#[test]
fn run_that_cannot_start_blocks_no_folder() {
    let project = Project::new();
    project.fitted(&[]);
    let valid = fs::read(project.path().join("shapes/train.json")).unwrap();
    project.edit_annotations(|coco| coco["annotations"][0]["bbox"] = json!([1, 1, 0, 5]));
    for arguments in [&[][..], &["--out", "run"]] {
        assert_contains(&project.refused(arguments), &["area"]);
    }
    assert_eq!(fs::read_link(project.path().join("runs/latest")).unwrap(), PathBuf::from("retinanet-1"));
    fs::write(project.path().join("shapes/train.json"), valid).unwrap();
    project.fitted(&["--out", "run"]);
    project.fitted(&[]);
    assert_eq!(fs::read_link(project.path().join("runs/latest")).unwrap(), PathBuf::from("retinanet-2"));
}

/// Another run moves the link `runs/latest` while a run that was resumed by it trains.
#[test]
fn a_resumed_run_stays_in_its_folder() {
    let project = Project::new();
    project.fitted(&[]);
    let resume = ["fit", "--resume", "--set", "run.epochs=1000"];
    let mut command = command(project.path(), &resume);
    let resumed = command.stderr(Stdio::piped()).spawn().unwrap();
    let config = || project.config("runs/retinanet-1/config.yaml")["run"]["epochs"].as_u64();
    while config() != Some(1000) {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    project.fitted(&[]);
    let state = |number: u32| fs::read(project.path().join(format!("runs/retinanet-{number}/state.safetensors")));
    let before = [1, 2].map(|number| state(number).unwrap());
    assert!(Command::new("kill").args(["-INT", &resumed.id().to_string()]).status().unwrap().success());
    let output = resumed.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    let parts = ["writing to runs/retinanet-1\n", "to resume: trainer fit --resume --out runs/retinanet-1\n"];
    assert_contains(&stderr(&output), &parts);
    assert!(state(1).unwrap() != before[0] && state(2).unwrap() == before[1]);
}

/// Four runs that start at the same moment, then runs with the folder of another run.
#[test]
fn concurrent_runs_use_separate_folders() {
    let project = Project::new();
    let runs: Vec<_> =
        (0..4).map(|_| command(project.path(), &["fit"]).stderr(Stdio::piped()).spawn().unwrap()).collect();
    for run in runs {
        let output = run.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    }
    for number in 1..=4 {
        let folder = project.path().join(format!("runs/retinanet-{number}"));
        assert!(Checkpoint::open(&folder.join("best.safetensors")).is_ok(), "{}", folder.display());
    }
    assert!(!project.path().join("runs/retinanet-5").exists());

    project.configure(&CONFIG.replace("epochs: 2", "epochs: 1000"));
    let mut child = command(project.path(), &["fit", "--out", "long"]).stderr(Stdio::null()).spawn().unwrap();
    while !project.path().join("long/config.yaml").exists() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let unfinished = project.path().join("long/.last.safetensors.1.partial");
    fs::write(&unfinished, "of the run").unwrap();
    let process = format!("process {}", child.id());
    assert_contains(&project.refused(&["--out", "long"]), &["`long` is in use by another run", &process]);
    assert_contains(&project.refused(&["--out", "long", "--resume"]), &["`long` is in use by another run", &process]);
    assert!(unfinished.exists(), "files of a running run are not removed");
    child.kill().unwrap();
    child.wait().unwrap();
    // The lock ends with its process, even if that is killed.
    assert_contains(&project.refused(&["--out", "long"]), &["already contains a run"]);
}
