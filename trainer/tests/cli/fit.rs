//! `trainer fit`: what a run writes, and that options have an effect.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::project::{CONFIG, Project, assert_contains, stderr, stdout, trainer};

#[test]
fn run_writes_its_files_and_is_bitwise_reproducible() {
    let project = Project::new();
    let output = project.fit(&[]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_contains(&stdout(&output), &["AP", "best.safetensors"]);
    assert_eq!(fs::read_link(project.path().join("runs/latest")).unwrap(), PathBuf::from("retinanet-1"));

    let first = project.checkpoint("runs/latest/last.safetensors");
    assert_eq!(first.provenance.epoch, Some(2));
    assert_eq!(first.spec.classes.len(), first.probe.outputs.logits.dim().2);
    project.checkpoint("runs/latest/best.safetensors");
    let report = project.read("runs/latest/report.html");
    assert_contains(&report, &["<!DOCTYPE html>", "Average precision", "epochs: 2", "\"jpeg\":\"/9j/"]);
    let lines = project.log("runs/latest");
    assert_eq!(lines.iter().filter(|line| line["learning_rate"].is_number()).count(), 4, "two steps per epoch");
    assert_eq!(lines.iter().filter(|line| line["validation"]["AP50"].is_number()).count(), 2);
    assert_contains(&project.read("runs/latest/config.yaml"), &["epochs: 2", "clip_grad_norm"]);

    assert_eq!(Project::with_run().checkpoint("run/last.safetensors"), first);
}

#[test]
fn augmented_training_is_bitwise_reproducible_with_and_without_cache_and_with_any_number_of_workers() {
    let project = Project::new();
    let config = |cache: &str| {
        let colors = "brightness: {probability: 0.5}, contrast: {probability: 0.5}, saturation: {probability: 0.5}";
        let geometry = "vertical_flip: 0.5, rotation: 0.5, crop: {probability: 0.5}, mosaic: {probability: 0.5}";
        let rest = "hue: {probability: 0.5}, scale: {probability: 0.5}";
        let cached = CONFIG.replace("\nrun:", &format!("\n  cache: {cache}\nrun:"));
        format!("augmentation: {{{geometry}, {colors}, {rest}}}{cached}")
    };
    project.configure(&config("{kind: none}"));
    project.fitted(&["--out", "none"]);
    project.configure(&config("{kind: memory}").replace("workers: 2", "workers: 3"));
    project.fitted(&["--out", "memory"]);
    let weights = |run: &str| project.checkpoint(&format!("{run}/last.safetensors"));
    assert_eq!(weights("memory"), weights("none"));
}

#[test]
fn tensorboard_events_contain_every_scalar_and_image() {
    let project = Project::with_run();
    let files = fs::read_dir(project.path().join("run")).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<_> = files.filter(|path| path.to_string_lossy().contains("tfevents")).collect();
    let [events] = &files[..] else { panic!("{files:?}") };
    let events = fs::read(events).unwrap();
    let count = |tag: &str| {
        // Searches for the field with its length prefix, so that AP is not found in AP50.
        let field = [&[10, u8::try_from(tag.len()).unwrap()][..], tag.as_bytes()].concat();
        events.windows(field.len()).filter(|window| *window == field).count()
    };
    // Two steps in each of two epochs.
    for tag in ["train/classification_loss", "train/box_loss", "train/gradient_norm", "train/learning_rate"] {
        assert_eq!(count(tag), 4, "{tag}");
    }
    for tag in [
        "validation/classification_loss",
        "validation/box_loss",
        "epoch/classification_loss",
        "epoch/box_loss",
        "speed/images_per_second",
        "speed/seconds_data",
        "speed/seconds_forward",
        "speed/seconds_backward",
        "speed/seconds_optimizer",
        "validation/AP",
        "validation/AP50",
        "validation/AP75",
        "validation/AR100",
        "found/00000.png",
        "found/00001.png",
        "found/00002.png",
    ] {
        assert_eq!(count(tag), 2, "{tag}");
    }
}

#[test]
fn validate_every_skips_epochs_but_not_the_last() {
    let project = Project::new();
    project.configure(&CONFIG.replace("epochs: 2", "validate_every: 2, epochs: 5"));
    project.fitted(&["--out", "run"]);
    let log = project.log("run");
    let validated: Vec<_> =
        log.iter().filter(|line| line["validation"].is_object()).map(|line| line["epoch"].clone()).collect();
    assert_eq!(validated, [2, 4, 5]);
    assert_eq!(project.checkpoint("run/last.safetensors").provenance.epoch, Some(5));
}

#[test]
fn validation_in_steps_saves_within_epochs_and_keeps_checkpoints() {
    let project = Project::new();
    // Three epochs of three steps.
    let run = "run: {validate_every: 2 steps, keep_checkpoints: 2, epochs: 3, batch_size: 2,";
    project.configure(&CONFIG.replace("run: {epochs: 2, batch_size: 4,", run));
    let message = project.fitted(&["--out", "run"]);
    assert_contains(&message, &["keeps 2 checkpoints of ", "step 2, 0.67 epochs: validation: classification loss"]);
    let validated: Vec<_> = project.log("run").into_iter().filter(|line| line["validation"].is_object()).collect();
    assert_eq!(validated.iter().map(|line| line["steps"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 4, 6, 8, 9]);
    let epochs: Vec<_> = validated.iter().map(|line| line["epoch"].as_f64().unwrap()).collect();
    let expected = [2.0 / 3.0, 4.0 / 3.0, 2.0, 8.0 / 3.0, 3.0];
    assert!(epochs.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-9), "{epochs:?}");
    let kept = fs::read_dir(project.path().join("run/checkpoints")).unwrap();
    let mut kept: Vec<_> = kept.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    kept.sort();
    assert_eq!(kept, ["step-0000004.safetensors", "step-0000008.safetensors"]);
    for (name, line) in kept.iter().zip([&validated[1], &validated[3]]) {
        let checkpoint = project.checkpoint(&format!("run/checkpoints/{name}"));
        assert_eq!(checkpoint.provenance.ap, line["validation"]["AP"].as_f64());
    }
    let last = project.checkpoint("run/last.safetensors");
    assert!(project.checkpoint("run/checkpoints/step-0000008.safetensors").tensors != last.tensors);
    assert_contains(&project.read("run/report.html"), &["\"validations\":[{\"epoch\":0.66"]);
    let ap = |line: &serde_json::Value| line["validation"]["AP"].as_f64().unwrap();
    let best = validated.iter().map(ap).fold(f64::MIN, f64::max);
    assert_eq!(project.checkpoint("run/best.safetensors").provenance.ap, Some(best));
}

#[test]
fn learning_rate_follows_the_schedule() {
    let project = Project::new();
    let schedule = "schedule: {kind: step, warmup_steps: 1, milestones: [1], factor: 0.5}";
    project.configure(&format!("{CONFIG}\noptimizer: {{learning_rate: 0.001}}\n{schedule}\n"));
    project.fitted(&["--out", "run"]);
    let rates: Vec<_> = project.log("run").iter().filter_map(|line| line["learning_rate"].as_f64()).collect();
    assert_eq!(rates, [0.0005, 0.001, 0.0005, 0.0005]);
}

#[test]
fn early_stop_ends_a_run_without_improvement() {
    let project = Project::new();
    // With a learning rate of zero and frozen statistics, no epoch changes the network.
    let config = CONFIG.replace("epochs: 2", "epochs: 9").replace("kind: batch", "kind: frozen_batch");
    project.configure(&format!("{config}\noptimizer: {{learning_rate: 0.0}}\nschedule: {{early_stop: 2}}\n"));
    let message = project.fitted(&["--out", "run"]);
    assert_contains(&message, &["no better AP in 2 validations"]);
    assert_eq!(project.checkpoint("run/last.safetensors").provenance.epoch, Some(3));
    // Three validations end within the second epoch of two steps.
    let message = project.fitted(&["--out", "steps", "--set", "run.validate_every=1 step"]);
    assert_contains(&message, &["no better AP in 2 validations", "step 1, 0.67 epochs"]);
    assert_eq!(project.log("steps").iter().filter(|line| line["step"].is_u64()).count(), 3);
    let message = project.fitted(&["--resume", "--out", "steps"]);
    assert_contains(&message, &["has stopped early, after 1 of 9 epochs"]);
}

#[test]
fn training_starts_from_the_weights_of_another_run() {
    let project = Project::with_run();
    let weights = ["--weights", "run/last.safetensors", "--out", "second"];
    project.configure(&format!("{CONFIG}\noptimizer: {{learning_rate: 0.0}}\n"));
    let message = project.fitted(&weights);
    assert_contains(&message, &["run/last.safetensors", "tensors loaded", "layer4"]);
    let name = "layer1.0.conv1.weight";
    let [first, second] = ["run", "second"].map(|run| project.checkpoint(&format!("{run}/last.safetensors")));
    assert!(first.tensors[name] == second.tensors[name]);

    project.configure(&CONFIG.replace("depth: 50", "depth: 101"));
    assert_contains(&project.refused(&weights[..2]), &["run/last.safetensors", "depth 50", "depth 101"]);
    assert_contains(&project.refused(&["--weights", "retinanet.yaml"]), &["retinanet.yaml"]);
}

/// Finds options that have no effect because they are not passed on.
#[test]
fn every_training_option_changes_the_weights() {
    let project = Project::new();
    // Two wide images, so that grouping by aspect ratio has something to do.
    for name in ["00000.png", "00003.png"] {
        let path = project.path().join("shapes/train").join(name);
        let narrow = runtime::image_file::read(&path).unwrap();
        let mut wide = image::RgbImage::new(128, 64);
        image::imageops::replace(&mut wide, &narrow, 0, 0);
        wide.save(&path).unwrap();
        project.edit_annotations(|coco| {
            let images = coco["images"].as_array_mut().unwrap();
            images.iter_mut().find(|image| image["file_name"] == name).unwrap()["width"] = 128.into();
        });
    }
    let weights = |out: &str, section: &str, entry: &str| {
        let mut config: serde_yaml::Value = serde_yaml::from_str(
            &CONFIG.replace("longer_side: 64", "longer_side: 128").replace("epochs: 2", "epochs: 1"),
        )
        .unwrap();
        if !section.is_empty() {
            let entry: serde_yaml::Mapping = serde_yaml::from_str(entry).unwrap();
            let empty = || serde_yaml::Value::Mapping(serde_yaml::Mapping::new());
            let section = config.as_mapping_mut().unwrap().entry(section.into()).or_insert_with(empty);
            section.as_mapping_mut().unwrap().extend(entry);
        }
        project.configure(&serde_yaml::to_string(&config).unwrap());
        project.fitted(&["--out", out]);
        project.checkpoint(&format!("{out}/last.safetensors")).tensors
    };
    let default = weights("default", "", "");
    let entries = [
        ("augmentation", "vertical_flip: 1.0"),
        ("augmentation", "large_scale_jitter: {probability: 1.0}"),
        ("matching", "allow_low_quality_matches: true"),
        ("matching", "foreground_iou_threshold: 0.4"),
        ("loss", "box_loss: giou"),
        ("loss", "smooth_l1_beta: 2.0"),
        ("loss", "box_loss_weight: 2.0"),
        ("loss", "normalizer: batch"),
        ("optimizer", "kind: sgd"),
        ("optimizer", "backbone_lr_multiplier: 0.5"),
        ("optimizer", "weight_decay: 0.5"),
        ("optimizer", "clip_grad_norm: 0.001"),
        ("optimizer", "gradient_accumulation_steps: 2"),
        ("schedule", "warmup_steps: 3"),
        ("run", "seed: 1"),
        ("run", "ema_decay: 0.5"),
        ("run", "freeze: stem"),
        ("run", "precision: bfloat16"),
        ("run", "aspect_ratio_grouping: false"),
    ];
    for (index, (section, entry)) in entries.into_iter().enumerate() {
        assert!(weights(&index.to_string(), section, entry) != default, "{section}: {entry}");
    }
}

#[test]
fn auto_is_the_largest_batch_that_fits_and_the_run_keeps_it() {
    let project = Project::new();
    let auto = ["--set", "run.batch_size=auto", "--set", "run.epochs=1", "--out", "run"];
    // All images of an epoch fit.
    let text = project.fitted(&auto);
    assert_contains(&text, &["finding the largest batch that fits", "batch size 6; `optimizer.learning_rate` stays"]);
    assert!(project.read("run/config.yaml").contains("batch_size: 6"));
    // A launcher may repeat its command.
    let again = project.fitted(&[&["--resume"], &auto[..]].concat());
    assert!(!again.contains("finding"), "{again}");

    let output = trainer(project.path(), &["bench", "--set", "run.batch_size=auto"]);
    assert_contains(&stderr(&output), &["`run.batch_size` is auto, which only `fit` finds; give a number"]);
}

/// A limit on the memory of the process stands in for the memory of a GPU: libtorch fails to allocate. With this one, the
/// last size that is tried fails in its backward pass, whose memory the run needs.
#[test]
fn auto_stops_before_memory_runs_out() {
    let project = Project::new();
    let fit = |side: &str, out: &str| {
        let program = env!("CARGO_BIN_EXE_trainer");
        let sides = format!("model.preprocessing={{shorter_side: {side}, longer_side: {side}}}");
        let limited =
            "ulimit -v 2700000; exec \"$0\" fit --set run.batch_size=auto --set run.epochs=1 --set \"$1\" --out \"$2\"";
        let mut command = Command::new("sh");
        command.args(["-c", limited, program, &sides, out]).current_dir(project.path());
        // Freed memory returns to the system, so that the trial leaves nothing behind.
        command.env("OMP_NUM_THREADS", "1").env("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=0").output().unwrap()
    };
    let output = fit("512", "run");
    assert!(output.status.success(), "{}", stderr(&output));
    let config = project.read("run/config.yaml");
    let found = (1..6).find(|images| config.contains(&format!("batch_size: {images}")));
    assert!(found.is_some(), "{config}");

    let output = fit("4096", "large");
    assert_eq!(output.status.code(), Some(1));
    assert_contains(&stderr(&output), &["not even one image fits", "longer_side` (4096)"]);
}
