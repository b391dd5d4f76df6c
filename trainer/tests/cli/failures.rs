//! What ends a run, and what is saved then.

use std::fs;
use std::process::Command;

use crate::project::{CONFIG, Project, assert_contains, stderr};

/// Simulates a full disk by the shell's limit on file sizes: a write fails halfway.
#[test]
fn full_disk_ends_the_run_and_keeps_the_last_checkpoint() {
    let project = Project::with_run();
    let before = ["last.safetensors", "best.safetensors", "state.safetensors"]
        .map(|file| fs::read(project.path().join("run").join(file)).unwrap());
    let config = project.path().join("run/config.yaml");
    fs::write(&config, fs::read_to_string(&config).unwrap().replace("epochs: 2", "epochs: 3")).unwrap();
    let program = env!("CARGO_BIN_EXE_trainer");
    let limited = format!("trap '' XFSZ; ulimit -f 2000; exec {program} fit --resume --out run");
    let output =
        Command::new("sh").args(["-c", &limited]).current_dir(project.path()).env("OMP_NUM_THREADS", "1").output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert_contains(
        &stderr(&output),
        &[".safetensors", "File too large", "to resume from the last save: trainer fit --resume --out run"],
    );
    let after = ["last.safetensors", "best.safetensors", "state.safetensors"]
        .map(|file| fs::read(project.path().join("run").join(file)).unwrap());
    assert!(before == after, "the earlier checkpoints are unchanged");
    let files_left = fs::read_dir(project.path().join("run")).unwrap().map(|entry| entry.unwrap().file_name());
    let mut files_left: Vec<_> = files_left.map(|name| name.into_string().unwrap()).collect();
    files_left.retain(|name| !name.contains("tfevents") && name != ".lock");
    files_left.sort();
    let files = [
        "best.detections.json",
        "best.safetensors",
        "config.yaml",
        "last.safetensors",
        "log.jsonl",
        "report.html",
        "sessions.jsonl",
        "state.safetensors",
    ];
    assert_eq!(files_left, files, "no partial file is left");
    project.fitted(&["--resume", "--out", "run"]);
}

/// Simulates running out of memory on the CPU by a limit on the memory of the process.
#[test]
fn out_of_memory_ends_the_run_with_advice_after_saving() {
    // The first epochs trained on small images. Larger ones, in the changed configuration, exceed the limit.
    let project = Project::with_run();
    let larger = project.read("run/config.yaml").replace("epochs: 2", "epochs: 3").replace("_side: 64", "_side: 2048");
    fs::write(project.path().join("run/config.yaml"), larger).unwrap();
    let program = env!("CARGO_BIN_EXE_trainer");
    let limited = format!("ulimit -v 4200000; exec {program} fit --resume --out run");
    let output =
        Command::new("sh").args(["-c", &limited]).current_dir(project.path()).env("OMP_NUM_THREADS", "1").output();
    let output = output.unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_contains(
        &text,
        &["tried to allocate", "bytes", "`run.batch_size` (4)", "longer_side` (2048)", "saved after step 4"],
    );
    assert!(!text.contains("panicked") && !text.contains("backtrace"), "{text}");
}

/// The truncation of an image is noticed only when it is decoded, in training or in validation. The last step of an
/// epoch has fewer batches than the others here.
#[test]
fn truncated_image_stops_the_run_which_can_be_resumed() {
    let project = Project::new();
    project.configure(&format!(
        "{}\noptimizer: {{gradient_accumulation_steps: 4}}\n",
        CONFIG.replace("epochs: 2, batch_size: 4", "epochs: 2, batch_size: 1")
    ));
    project.fitted(&["--out", "whole"]);
    for split in ["train", "val"] {
        let image = project.path().join("shapes").join(split).join("00002.png");
        let intact = fs::read(&image).unwrap();
        fs::write(&image, &intact[..intact.len() / 2]).unwrap();
        let resumption = format!("trainer fit --resume --out {split}");
        assert_contains(
            &project.refused(&["--out", split]),
            &["00002.png", "truncated", "saved after step", &resumption],
        );
        fs::write(&image, intact).unwrap();
        project.fitted(&["--resume", "--out", split]);
        let resumed = project.checkpoint(&format!("{split}/last.safetensors"));
        assert_eq!(resumed, project.checkpoint("whole/last.safetensors"), "{split}");
    }
}

#[test]
fn non_finite_loss_stops_the_run_and_names_the_images() {
    let project = Project::new();
    let config = "optimizer: {kind: sgd, learning_rate: 1e30, clip_grad_norm: null}\nschedule: {warmup_steps: 0}\nrun:";
    project.configure(&CONFIG.replace("\nrun:", &format!("\n{config}")));
    let message = project.refused(&["--out", "run"]);
    assert_contains(&message, &["not finite", "learning_rate", ".png"]);
    assert_eq!(project.steps_saved("run"), 0);

    // With `save_every_minutes`, the steps before are saved.
    project.configure(&CONFIG.replace("\nrun: {", &format!("\n{config} {{save_every_minutes: 1e-9, ")));
    project.refused(&["--out", "saving"]);
    assert!(project.steps_saved("saving") > 0);
}

#[test]
fn unavailable_devices_are_errors() {
    let project = Project::new();
    let output = project.fit(&["--device", "tpu"]);
    assert_eq!(output.status.code(), Some(2));
    assert_contains(&stderr(&output), &["cpu, cuda or cuda:N"]);
    // Fails on a machine with GPUs too: none has this many.
    assert_contains(&project.refused(&["--device", "cuda:99"]), &["CUDA"]);
}
