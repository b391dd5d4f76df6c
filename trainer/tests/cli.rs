//! Tests of the program `trainer`.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use models::Checkpoint;
use tempfile::TempDir;

fn trainer(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, arguments).output().unwrap()
}

/// One OpenMP thread per process, because the tests run in parallel.
fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
    command.current_dir(folder).args(arguments).env("OMP_NUM_THREADS", "1");
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A folder with a generated data set and a configuration that trains a small network on it in seconds.
struct Project(TempDir);

impl Project {
    fn new() -> Self {
        let project = Self(tempfile::tempdir().unwrap());
        let size = ["--width", "64", "--height", "64", "--train", "6", "--val", "3", "--test", "0"];
        let drawn = trainer(project.path(), &[&["synth", "--out", "shapes"], size.as_slice()].concat());
        assert!(drawn.status.success(), "{}", stderr(&drawn));
        project.configure(CONFIG);
        project
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn configure(&self, config: &str) {
        fs::write(self.path().join("retinanet.yaml"), config).unwrap();
    }

    fn fit(&self, arguments: &[&str]) -> Output {
        trainer(self.path(), &[&["fit"], arguments].concat())
    }

    /// Runs `fit`, asserts that it fails, and returns its stderr.
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.fit(arguments);
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        stderr(&output)
    }

    fn edit_annotations(&self, edit: impl Fn(&mut serde_json::Value)) {
        let path = self.path().join("shapes/train.json");
        let mut coco = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        edit(&mut coco);
        fs::write(&path, coco.to_string()).unwrap();
    }

    /// The number of steps in the saved state of a run in its first epoch.
    fn steps_saved(&self, run: &str) -> u64 {
        let bytes = fs::read(self.path().join(run).join("state.safetensors")).unwrap();
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let progress: serde_json::Value =
            serde_json::from_str(&metadata.metadata().as_ref().unwrap()["progress"]).unwrap();
        assert_eq!(progress["epochs"], 0);
        progress["steps"].as_u64().unwrap()
    }

    /// The lines of a run's log.
    fn log(&self, run: &str) -> Vec<serde_json::Value> {
        let log = fs::read_to_string(self.path().join(run).join("log.jsonl")).unwrap();
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The validations of a run.
    fn validations(&self, run: &str) -> Vec<serde_json::Value> {
        self.log(run).into_iter().map(|mut line| line["validation"].take()).filter(|v| v.is_object()).collect()
    }

    fn config(&self, path: &str) -> serde_yaml::Value {
        serde_yaml::from_str(&fs::read_to_string(self.path().join(path)).unwrap()).unwrap()
    }

    fn checkpoint(&self, path: &str) -> Checkpoint {
        Checkpoint::open(&self.path().join(path)).unwrap()
    }
}

const CONFIG: &str = "
data:
  train: {annotations: shapes/train.json, images: shapes/train}
  validation: {annotations: shapes/val.json, images: shapes/val}
run: {epochs: 2, batch_size: 4, workers: 2}
model:
  backbone: {depth: 18, norm: {kind: batch}}
  pyramid: {width: 16}
  heads: {width: 16, depth: 1}
  preprocessing: {shorter_side: 64, longer_side: 64}
";

fn assert_contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

#[test]
fn run_writes_its_files_and_is_bitwise_reproducible() {
    let project = Project::new();
    let output = project.fit(&[]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_contains(&String::from_utf8_lossy(&output.stdout), &["AP", "best.safetensors"]);

    let first = project.checkpoint("runs/latest/last.safetensors");
    assert_eq!(first.provenance.epoch, Some(2));
    assert_eq!(first.spec.classes.len(), first.probe.outputs.logits.dim().2);
    project.checkpoint("runs/latest/best.safetensors");
    let report = fs::read_to_string(project.path().join("runs/latest/report.html")).unwrap();
    assert_contains(&report, &["<!DOCTYPE html>", "Average precision", "epochs: 2", "\"jpeg\":\"/9j/"]);
    let log = fs::read_to_string(project.path().join("runs/latest/log.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.iter().filter(|line| line["learning_rate"].is_number()).count(), 4, "two steps per epoch");
    assert_eq!(lines.iter().filter(|line| line["validation"]["AP50"].is_number()).count(), 2);
    assert_contains(
        &fs::read_to_string(project.path().join("runs/latest/config.yaml")).unwrap(),
        &["epochs: 2", "clip_grad_norm"],
    );

    assert!(project.fit(&[]).status.success());
    assert_eq!(fs::read_link(project.path().join("runs/latest")).unwrap(), PathBuf::from("retinanet-2"));
    assert_eq!(project.checkpoint("runs/retinanet-2/last.safetensors"), first);
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
    let output = project.fit(&["--out", "none"]);
    assert!(output.status.success(), "{}", stderr(&output));
    project.configure(&config("{kind: memory}").replace("workers: 2", "workers: 3"));
    let output = project.fit(&["--out", "memory"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let weights = |run: &str| project.checkpoint(&format!("{run}/last.safetensors"));
    assert_eq!(weights("memory"), weights("none"));
    project.configure(&config("{kind: disk}"));
    assert_contains(
        &project.refused(&["--out", "disk"]),
        &["retinanet.yaml", "data.cache: images are no longer cached on disk", "line"],
    );
}

/// Ctrl-C or SIGTERM in the middle of an epoch, then `--resume`: same weights as without the interruption.
#[test]
fn interrupted_run_resumes_to_the_same_weights() {
    let project = Project::new();
    project
        .configure(&CONFIG.replace("epochs: 2, batch_size: 4", "epochs: 4, batch_size: 2, save_every_minutes: 0.0005"));
    assert!(project.fit(&["--out", "whole"]).status.success());

    let log = project.path().join("interrupted/log.jsonl");
    let lines = || fs::read_to_string(&log).map_or(0, |text| text.lines().count());
    for (signal, resume) in [("-INT", None), ("-TERM", Some("--resume"))] {
        let before = lines();
        let arguments: Vec<_> = ["fit", "--out", "interrupted"].into_iter().chain(resume).collect();
        let mut command = command(project.path(), &arguments);
        let child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
        while lines() < before + 2 {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let signaled = std::time::Instant::now();
        // Launchers may send a signal twice.
        for _ in 0..2 {
            assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        }
        let output = child.wait_with_output().unwrap();
        assert!(signaled.elapsed().as_secs() < 10);
        assert_eq!(output.status.code(), Some(130), "{signal}: {}", stderr(&output));
        assert_contains(&stderr(&output), &["interrupted; saved after step", "trainer fit --resume --out interrupted"]);
        let saved: u64 =
            stderr(&output).split_once("saved after step ").unwrap().1.split(';').next().unwrap().parse().unwrap();
        let logged = project.log("interrupted").iter().filter_map(|line| line["step"].as_u64()).max();
        assert_eq!(logged, Some(saved), "the log is complete");
    }

    assert_contains(&project.refused(&["--resume", "--out", "interrupted", "--data", "."]), &["--data"]);
    let coco = fs::read(project.path().join("shapes/train.json")).unwrap();
    project.edit_annotations(|coco| coco["annotations"][0]["bbox"] = serde_json::json!([1, 1, 20, 20]));
    assert_contains(&project.refused(&["--resume", "--out", "interrupted"]), &["have changed", "start a new run"]);
    fs::write(project.path().join("shapes/train.json"), coco).unwrap();

    // Left by a run that was killed while saving.
    let unfinished = project.path().join("interrupted/.last.safetensors.1.partial");
    fs::write(&unfinished, b"half of it").unwrap();
    let resumed = project.fit(&["--resume", "--out", "interrupted"]);
    assert!(resumed.status.success(), "{}", stderr(&resumed));
    assert_eq!(project.checkpoint("interrupted/last.safetensors"), project.checkpoint("whole/last.safetensors"));
    assert!(!unfinished.exists());
}

#[test]
fn check_reports_statistics_and_problems_of_the_data() {
    let project = Project::new();
    let sound = trainer(project.path(), &["check", "--draw", "drawn", "--draw-augmented", "seen", "--count", "2"]);
    assert!(sound.status.success(), "{}", stderr(&sound));
    let table = String::from_utf8(sound.stdout).unwrap();
    assert_contains(&table, &["6 images", "3 images", "with anchor", "disk", "64 x 64"]);
    assert!(!table.contains("anchors: "), "{table}");
    for folder in ["drawn", "seen"] {
        let mut drawn = fs::read_dir(project.path().join(folder)).unwrap().map(|entry| entry.unwrap().path());
        let image = runtime::image_file::read(drawn.next().unwrap()).unwrap();
        assert_eq!((image.dimensions(), drawn.count()), ((64, 64), 1));
    }

    // A box of zero area, a duplicate box, a tiny box; an unreadable image, a duplicate image, an image in both splits.
    project.edit_annotations(|coco| {
        coco["annotations"][0]["bbox"] = serde_json::json!([1, 1, 0, 5]);
        let mut duplicate = coco["annotations"][1].clone();
        duplicate["id"] = 9999.into();
        let mut tiny = duplicate.clone();
        (tiny["id"], tiny["bbox"]) = (10_000.into(), serde_json::json!([7, 7, 3, 3]));
        coco["annotations"].as_array_mut().unwrap().extend([duplicate, tiny]);
    });
    let image = |path: &str| project.path().join("shapes").join(path);
    fs::write(image("train/00005.png"), b"no image").unwrap();
    fs::copy(image("train/00001.png"), image("train/00004.png")).unwrap();
    fs::copy(image("train/00000.png"), image("val/00002.png")).unwrap();
    let output = trainer(project.path(), &["check", "--json", "check.json"]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert_contains(
        &String::from_utf8(output.stdout).unwrap(),
        &["1 box of zero area", "00005.png: not a JPEG, PNG", "00001.png, 00004.png", "00000.png and 00002.png"],
    );
    let report: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(project.path().join("check.json")).unwrap()).unwrap();
    let train = &report["train"];
    assert_eq!(train["bad_images"][0]["file"], "00005.png");
    assert_eq!(train["duplicate_boxes"][0]["annotation"], 9999);
    assert_eq!(report["in_both"][0][0], "00000.png");
    assert!(report["suggestion"].is_null(), "it was not requested");
    let unmatched = train["unmatched"].as_array().unwrap();
    assert!(unmatched.iter().any(|entry| entry["annotation"] == 10_000), "{unmatched:?}");
    let classes = train["classes"].as_array().unwrap();
    let boxes: u64 = classes.iter().map(|class| class["all"]["boxes"].as_u64().unwrap()).sum();
    assert_eq!(boxes, train["boxes"].as_u64().unwrap());
}

#[test]
fn check_suggests_anchors_that_match_more_boxes() {
    let project = Project::new();
    // Anchors larger than the images.
    project.configure(&format!("{CONFIG}  anchors: {{sizes: [160, 320, 640, 1280, 2560]}}\n"));
    let output = trainer(project.path(), &["check", "--suggest-anchors", "--json", "check.json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_contains(
        &String::from_utf8(output.stdout).unwrap(),
        &["anchors: these match ", " instead of 0.00 % (on 6 images)", "\n    sizes: [", "\n    ratios: ["],
    );
    let report: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(project.path().join("check.json")).unwrap()).unwrap();
    let suggestion = &report["suggestion"];
    assert_eq!(suggestion["matched_fraction"][0].as_f64(), Some(0.0));
    assert!(suggestion["matched_fraction"][1].as_f64().unwrap() > 0.0, "{suggestion}");
    assert!(suggestion["anchors"]["sizes"][0].as_f64().unwrap() < 160.0, "{suggestion}");
}

#[test]
fn check_reports_classes_that_training_refuses() {
    let project = Project::new();
    let classes = "{id: 1, name: disk}, {id: 2, name: ring}, {id: 3, name: square}, {id: 4, name: triangle}, \
                   {id: 5, name: star}";
    let check = |classes: &str| {
        project.configure(&CONFIG.replace("\nmodel:", &format!("\nmodel:\n  classes: [{classes}]")));
        let output = trainer(project.path(), &["check"]);
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, table) = check(classes);
    assert_eq!(code, Some(0), "{table}");
    let (code, table) = check(&classes.replace("star", "moon"));
    assert_eq!(code, Some(3), "{table}");
    assert_contains(&table, &["`model.classes` (disk, ring, square, triangle, moon): star"]);
    assert_contains(&project.refused(&[]), &["`model.classes`"]);
}

#[test]
fn validation_may_lack_classes_and_have_other_ids_but_no_other_classes() {
    let project = Project::new();
    let path = project.path().join("shapes/val.json");
    let edit = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut coco: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut coco);
        fs::write(&path, coco.to_string()).unwrap();
    };
    // Only disks are left, under another id.
    edit(&|coco| {
        coco["categories"] = serde_json::json!([{"id": 77, "name": "disk"}]);
        for annotation in coco["annotations"].as_array_mut().unwrap() {
            annotation["category_id"] = 77.into();
        }
    });
    let output = trainer(project.path(), &["check"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
    let output = project.fit(&[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let output = trainer(project.path(), &["eval", "--data", "shapes/val.json", "--images", "shapes/val"]);
    assert!(output.status.success(), "{}", stderr(&output));

    edit(&|coco| coco["categories"][0]["name"] = "moon".into());
    let message =
        "classes that are not in the training data (disk, ring, square, triangle, star): moon; list all of them";
    let output = trainer(project.path(), &["check"]);
    assert_eq!(output.status.code(), Some(3));
    assert_contains(&String::from_utf8_lossy(&output.stdout), &[message]);
    assert_contains(&project.refused(&[]), &[message]);
}

#[test]
fn several_data_sets_train_as_one_and_images_are_not_opened_again() {
    let project = Project::new();
    // A second set whose file names, image ids and class ids collide with the first's.
    let coco = fs::read_to_string(project.path().join("shapes/val.json")).unwrap();
    let mut coco: serde_json::Value = serde_json::from_str(&coco).unwrap();
    coco["categories"][0]["name"] = "moon".into();
    fs::write(project.path().join("more.json"), coco.to_string()).unwrap();
    let [one, more] =
        ["annotations: shapes/train.json, images: shapes/train", "annotations: more.json, images: shapes/val"];
    let train = format!("[{{{one}}}, {{{more}, repeat: 2}}]");
    let before = "{annotations: shapes/train.json, images: shapes/train}";
    assert!(CONFIG.contains(before));
    project.configure(&CONFIG.replace(before, &train));

    let check = trainer(project.path(), &["check", "--json", "check.json"]);
    let table = String::from_utf8(check.stdout).unwrap();
    assert_eq!(check.status.code(), Some(0), "{table}");
    let parts =
        ["training, 2 data sets: 9 images, ", "more.json: 3 images, ", ", 2 times in an epoch", "12 images per epoch"];
    assert_contains(&table, &parts);
    let report: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(project.path().join("check.json")).unwrap()).unwrap();
    assert_eq!((&report["images_per_epoch"], &report["train"]["sources"][1]["repeat"]), (&12.into(), &2.into()));

    let output = project.fit(&[]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_contains(&stderr(&output), &["9 training images (12 in an epoch), 3 validation images, 6 classes"]);
    let classes = project.checkpoint("runs/latest/last.safetensors").spec.classes;
    assert_eq!(classes.iter().map(|class| (class.id, class.name.as_str())).next_back(), Some((6, "moon")));

    // An image that is damaged without a trace in size and time is found by decoding only.
    let image = project.path().join("shapes/train/00002.png");
    let (size, time) = (image.metadata().unwrap().len(), image.metadata().unwrap().modified().unwrap());
    let damage = |time| {
        fs::write(&image, vec![0; size as usize]).unwrap();
        fs::File::options().write(true).open(&image).unwrap().set_modified(time).unwrap();
    };
    damage(time);
    assert_contains(&project.refused(&[]), &["00002.png", "saved after step"]);
    damage(time + std::time::Duration::from_secs(1));
    assert_contains(&project.refused(&[]), &["1 of 6 images is missing in", "00002.png; fix them"]);
}

#[test]
fn training_without_boxes_is_refused_and_without_matched_boxes_warned_about() {
    let change = |change: &dyn Fn(&mut serde_json::Value)| {
        let project = Project::new();
        project.edit_annotations(|coco| coco["annotations"].as_array_mut().unwrap().iter_mut().for_each(change));
        project
    };
    let project = change(&|annotation| annotation["iscrowd"] = 1.into());
    assert_contains(&project.refused(&[]), &["no boxes to learn from: 6 images,"]);
    assert_eq!(trainer(project.path(), &["check"]).status.code(), Some(3));

    let project = change(&|annotation| annotation["bbox"] = serde_json::json!([0.1, 0.2, 0.3, 0.4]));
    let output = project.fit(&[]);
    assert_contains(&stderr(&output), &["no box matches an anchor", "coordinates from 0 to 1"]);
}

#[test]
fn check_fails_if_no_image_is_left() {
    let project = Project::new();
    project.configure(&CONFIG.replace("\nrun:", "\n  bad_annotations: drop\nrun:"));
    for left in (0..6).rev() {
        fs::remove_file(project.path().join(format!("shapes/train/{left:05}.png"))).unwrap();
        let code = if left > 0 { 0 } else { 1 };
        assert_eq!(trainer(project.path(), &["check"]).status.code(), Some(code), "{left} images are left");
    }
    assert_contains(&project.refused(&[]), &["no usable images: 6 images that cannot be read, dropped: 00000.png"]);
}

#[test]
fn tensorboard_events_contain_every_scalar_and_image() {
    let project = Project::new();
    let output = project.fit(&["--out", "run"]);
    assert!(output.status.success(), "{}", stderr(&output));
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
fn coco_and_csv_data_train_the_same_weights() {
    let project = Project::new();
    assert!(project.fit(&["--out", "coco"]).status.success());
    for split in ["train", "val"] {
        let coco = fs::read_to_string(project.path().join(format!("shapes/{split}.json"))).unwrap();
        let coco: serde_json::Value = serde_json::from_str(&coco).unwrap();
        let find = |list: &str, id: &serde_json::Value| -> serde_json::Value {
            coco[list].as_array().unwrap().iter().find(|entry| entry["id"] == *id).unwrap().clone()
        };
        let mut rows = String::new();
        for annotation in coco["annotations"].as_array().unwrap() {
            let [x, y, width, height] = [0, 1, 2, 3].map(|i| annotation["bbox"][i].as_f64().unwrap());
            let file = find("images", &annotation["image_id"])["file_name"].as_str().unwrap().to_owned();
            let class = find("categories", &annotation["category_id"])["name"].as_str().unwrap().to_owned();
            rows += &format!("{file},{x},{y},{},{},{class}\n", x + width, y + height);
        }
        for image in coco["images"].as_array().unwrap() {
            let has_boxes = coco["annotations"].as_array().unwrap().iter().any(|box_| box_["image_id"] == image["id"]);
            if !has_boxes {
                rows += &format!("{},,,,,\n", image["file_name"].as_str().unwrap());
            }
        }
        fs::write(project.path().join(format!("shapes/{split}.csv")), rows).unwrap();
        let classes = coco["categories"].as_array().unwrap();
        let classes = classes.iter().map(|class| format!("{},{}\n", class["name"].as_str().unwrap(), class["id"]));
        fs::write(project.path().join("shapes/classes.csv"), classes.collect::<String>()).unwrap();
    }
    let config = CONFIG.replace(".json, ", ".csv, classes: shapes/classes.csv, ");
    project.configure(&config);
    let output = project.fit(&["--out", "csv"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(project.checkpoint("csv/last.safetensors") == project.checkpoint("coco/last.safetensors"));

    // CSV has no image sizes, so an unreadable image can be used neither for training nor for validation.
    for broken in ["train/00001.png", "val/00001.png"] {
        fs::write(project.path().join("shapes").join(broken), b"no image").unwrap();
    }
    assert_contains(&project.refused(&["--out", "refused"]), &["00001.png", "bad_annotations: drop"]);
    project.configure(&config.replace("\nrun:", "\n  bad_annotations: drop\nrun:"));
    let output = project.fit(&["--out", "dropped"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_contains(&stderr(&output), &["5 training images, 2 validation images"]);
    assert!(trainer(project.path(), &["check"]).status.success());
}

/// Kills the run repeatedly, with every option that has a state.
#[test]
fn killed_run_resumes_to_the_same_weights() {
    let project = Project::new();
    let options_with_state = "
augmentation: {vertical_flip: 0.5, mosaic: {probability: 0.5}, large_scale_jitter: {probability: 0.5}, close_mosaic: 2}
optimizer: {kind: adamw, gradient_accumulation_steps: 2}
schedule: {kind: plateau, warmup_steps: 2, patience: 0}
run: {epochs: 4, batch_size: 1, workers: 2, ema_decay: 0.9, save_every_minutes: 0.0005,
  validate_every: 2 steps, keep_checkpoints: 1}
";
    project.configure(&CONFIG.replace("\nrun: {epochs: 2, batch_size: 4, workers: 2}\n", options_with_state));
    let whole = project.fit(&["--out", "whole"]);
    assert!(whole.status.success(), "{}", stderr(&whole));

    let log = project.path().join("killed/log.jsonl");
    let logged = || fs::read(&log).map_or(0, |bytes| bytes.len());
    let mut kills = 0;
    for attempt in 0.. {
        // Begins the run the first time.
        let mut child = command(project.path(), &["fit", "--out", "killed", "--resume"])
            .stderr(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Waits for the first new step and then for a varying time before the kill; the seventh attempt may finish.
        let before = logged();
        while attempt < 6 && child.try_wait().unwrap().is_none() && logged() <= before {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        std::thread::sleep(std::time::Duration::from_millis(attempt * 37 % 101));
        if attempt < 6 && child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            kills += 1;
        }
        if child.wait().unwrap().success() {
            break;
        }
        assert!(attempt < 7, "the last attempt was not killed, but failed");
        for file in ["last.safetensors", "best.safetensors", "checkpoints/step-0000002.safetensors"] {
            let path = project.path().join("killed").join(file);
            assert!(!path.exists() || Checkpoint::open(&path).is_ok(), "{file} is damaged");
        }
    }
    assert!(kills >= 3, "killed only {kills} times");
    assert!(project.checkpoint("killed/last.safetensors") == project.checkpoint("whole/last.safetensors"));
    assert!(project.checkpoint("killed/best.safetensors") == project.checkpoint("whole/best.safetensors"));
    let kept = "checkpoints/step-0000008.safetensors";
    assert!(project.checkpoint(&format!("killed/{kept}")) == project.checkpoint(&format!("whole/{kept}")));
    assert_eq!(project.validations("killed"), project.validations("whole"), "every validation is in the log once");
    assert_eq!(project.validations("whole").len(), 6);
    let state = |run: &str| fs::read(project.path().join(run).join("state.safetensors")).unwrap();
    assert!(state("killed") == state("whole"));
    let steps = |name: &str| -> Vec<u64> {
        let log = fs::read_to_string(project.path().join(name).join("log.jsonl")).unwrap();
        let lines = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.filter_map(|line| line["step"].as_u64()).collect()
    };
    assert_eq!(steps("whole"), (1..=12).collect::<Vec<_>>());
    assert_eq!(steps("killed"), steps("whole"), "every step is in the log once");
}

/// Simulates a full disk by the shell's limit on file sizes: a write fails halfway.
#[test]
fn full_disk_ends_the_run_and_keeps_the_last_checkpoint() {
    let project = Project::new();
    assert!(project.fit(&["--out", "run"]).status.success());
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
    assert!(project.fit(&["--resume", "--out", "run"]).status.success());
}

#[test]
fn validate_every_skips_epochs_but_not_the_last() {
    let project = Project::new();
    project.configure(&CONFIG.replace("epochs: 2", "validate_every: 2, epochs: 5"));
    assert!(project.fit(&["--out", "run"]).status.success());
    let log = fs::read_to_string(project.path().join("run/log.jsonl")).unwrap();
    let lines = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let validated: Vec<_> =
        lines.filter(|line| line["validation"].is_object()).map(|line| line["epoch"].clone()).collect();
    assert_eq!(validated, [2, 4, 5]);
    assert_eq!(project.checkpoint("run/last.safetensors").provenance.epoch, Some(5));
}

#[test]
fn validation_in_steps_saves_within_epochs_and_keeps_checkpoints() {
    let project = Project::new();
    // Three epochs of three steps.
    let run = "run: {validate_every: 2 steps, keep_checkpoints: 2, epochs: 3, batch_size: 2,";
    project.configure(&CONFIG.replace("run: {epochs: 2, batch_size: 4,", run));
    let output = project.fit(&["--out", "run"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_contains(
        &stderr(&output),
        &["keeps 2 checkpoints of ", "step 2, 0.67 epochs: validation: classification loss"],
    );
    let validated: Vec<_> = project.log("run").into_iter().filter(|line| line["validation"].is_object()).collect();
    assert_eq!(validated.iter().map(|line| line["steps"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 4, 6, 8, 9]);
    let epochs: Vec<_> = validated.iter().map(|line| line["epoch"].as_f64().unwrap()).collect();
    assert!(
        epochs.iter().zip([2.0 / 3.0, 4.0 / 3.0, 2.0, 8.0 / 3.0, 3.0]).all(|(a, b)| (a - b).abs() < 1e-9),
        "{epochs:?}"
    );
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
    let report = fs::read_to_string(project.path().join("run/report.html")).unwrap();
    assert_contains(&report, &["\"validations\":[{\"epoch\":0.66"]);
    let ap = |line: &serde_json::Value| line["validation"]["AP"].as_f64().unwrap();
    let best = validated.iter().map(ap).fold(f64::MIN, f64::max);
    assert_eq!(project.checkpoint("run/best.safetensors").provenance.ap, Some(best));
}

#[test]
fn learning_rate_follows_the_schedule() {
    let project = Project::new();
    let schedule = "schedule: {kind: step, warmup_steps: 1, milestones: [1], factor: 0.5}";
    project.configure(&format!("{CONFIG}\noptimizer: {{learning_rate: 0.001}}\n{schedule}\n"));
    assert!(project.fit(&["--out", "run"]).status.success());
    let log = fs::read_to_string(project.path().join("run/log.jsonl")).unwrap();
    let lines = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let rates: Vec<_> = lines.filter_map(|line| line["learning_rate"].as_f64()).collect();
    assert_eq!(rates, [0.0005, 0.001, 0.0005, 0.0005]);
}

#[test]
fn early_stop_ends_a_run_without_improvement() {
    let project = Project::new();
    // With a learning rate of zero and frozen statistics, no epoch changes the network.
    let config = CONFIG.replace("epochs: 2", "epochs: 9").replace("kind: batch", "kind: frozen_batch");
    project.configure(&format!("{config}\noptimizer: {{learning_rate: 0.0}}\nschedule: {{early_stop: 2}}\n"));
    let output = project.fit(&["--out", "run"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_contains(&stderr(&output), &["no better AP in 2 validations"]);
    assert_eq!(project.checkpoint("run/last.safetensors").provenance.epoch, Some(3));
    // Three validations end within the second epoch of two steps.
    let output = project.fit(&["--out", "steps", "--set", "run.validate_every=1 step"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_contains(&stderr(&output), &["no better AP in 2 validations", "step 1, 0.67 epochs"]);
    assert_eq!(project.log("steps").iter().filter(|line| line["step"].is_u64()).count(), 3);
    let output = project.fit(&["--resume", "--out", "steps"]);
    assert_contains(&stderr(&output), &["has stopped early, after 1 of 9 epochs"]);
}

#[test]
fn training_starts_from_the_weights_of_another_run() {
    let project = Project::new();
    assert!(project.fit(&["--out", "first"]).status.success());
    let weights = ["--weights", "first/last.safetensors", "--out", "second"];
    project.configure(&format!("{CONFIG}\noptimizer: {{learning_rate: 0.0}}\n"));
    let output = project.fit(&weights);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_contains(&stderr(&output), &["first/last.safetensors", "tensors loaded", "layer4"]);
    let name = "layer1.0.conv1.weight";
    let [first, second] = ["first", "second"].map(|run| project.checkpoint(&format!("{run}/last.safetensors")));
    assert!(first.tensors[name] == second.tensors[name]);

    project.configure(&CONFIG.replace("depth: 18", "depth: 34"));
    assert_contains(&project.refused(&weights[..2]), &["first/last.safetensors", "depth 18", "depth 34"]);
    assert_contains(&project.refused(&["--weights", "retinanet.yaml"]), &["retinanet.yaml"]);
}

#[test]
fn bench_reports_stage_times_and_needs_no_data() {
    let project = Project::new();
    let config = CONFIG.replace("shapes/", "nowhere/").replace("epochs: 2", "epochs: 2, ema_decay: 0.9");
    project.configure(&format!("{config}\noptimizer: {{gradient_accumulation_steps: 2}}\n"));
    let small = ["bench", "--steps", "2", "--width", "64", "--height", "64"];
    let output = trainer(project.path(), &small);
    assert!(output.status.success(), "{}", stderr(&output));
    let table = String::from_utf8(output.stdout).unwrap();
    assert_contains(&table, &["8 images per step, 64x64", "data ", "forward ", "backward ", "optimizer ", "images/s"]);

    let output = trainer(project.path(), &[&small[..], &["--json", "-"]].concat());
    let numbers: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let seconds = &numbers["seconds"];
    for stage in ["data", "forward", "backward", "optimizer"] {
        assert!(seconds[stage].as_f64().unwrap() > 0.0, "{seconds}");
    }
    assert!(numbers["loader_images_per_second"].as_f64().unwrap() > 0.0);
    assert!(numbers["machine"]["cpu"].is_string() && numbers["memory_mib"][1].as_u64().unwrap() > 0);
}

#[test]
fn configuration_errors_show_file_key_and_line() {
    let project = Project::new();
    project.configure(&CONFIG.replace("epochs: 2", "epoch: 2"));
    assert_contains(&project.refused(&[]), &["retinanet.yaml", "`epoch`", "line 5"]);
    project.configure(&CONFIG.replace("epochs: 2", "epochs: many"));
    assert_contains(&project.refused(&[]), &["run.epochs", "many", "line 5"]);
    project.configure(&CONFIG.replace("depth: 18", "depth: 19"));
    assert_contains(&project.refused(&[]), &["backbone.depth", "19", "152"]);
    for (section, message) in [
        ("schedule: {kind: step}", "schedule.milestones"),
        ("schedule: {kind: step, milestones: [2]}", "from 1 to 1"),
        ("schedule: {early_stop: 0}", "schedule.early_stop"),
        ("schedule: {factor: 2}", "schedule.factor"),
        ("optimizer: {nesterov: true}", "optimizer.nesterov"),
        ("optimizer: {gradient_accumulation_steps: 0}", "optimizer.gradient_accumulation_steps"),
        ("optimizer: {backbone_lr_multiplier: -1}", "optimizer.backbone_lr_multiplier"),
        ("loss: {box_loss: l2}", "loss.box_loss"),
    ] {
        project.configure(&format!("{CONFIG}\n{section}\n"));
        assert_contains(&project.refused(&[]), &["retinanet.yaml", message]);
    }
    for (value, message) in [
        ("freeze: heads", "run.freeze"),
        ("ema_decay: 1.0", "run.ema_decay"),
        ("save_every_minutes: 0", "run.save_every_minutes"),
        ("validate_every: 0", "run: `0 epochs` is not an interval"),
        ("validate_every: [1]", "such as `2 epochs` or `500 steps`"),
        ("keep_checkpoints: 0", "`run.keep_checkpoints` is 0"),
    ] {
        project.configure(&CONFIG.replace("epochs: 2", &format!("{value}, epochs: 2")));
        assert_contains(&project.refused(&[]), &[message]);
    }
    project.configure(&format!("augmentation: {{mosiac: {{probability: 1}}}}{CONFIG}"));
    assert_contains(&project.refused(&[]), &["retinanet.yaml", "`mosiac`", "line 1"]);
    project.configure(&format!("augmentation: {{rotation: 90}}{CONFIG}"));
    assert_contains(&project.refused(&[]), &["retinanet.yaml", "`augmentation.rotation` is 90"]);
    project.configure(&CONFIG.replace("\nrun:", "\n  cache: {kind: memory, max_gigabytes: 0}\nrun:"));
    assert_contains(&project.refused(&[]), &["retinanet.yaml", "`data.cache.max_gigabytes` is 0"]);
    assert_contains(&project.refused(&["--config", "none.yaml"]), &["none.yaml", "trainer init"]);
    assert!(!project.path().join("runs").exists(), "a run that cannot start creates no folder");
}

#[test]
fn values_of_the_configuration_are_set_on_the_command_line() {
    let project = Project::new();
    fs::create_dir(project.path().join("configs")).unwrap();
    let config = CONFIG.replace("validation: {annotations: shapes/val.json, images: shapes/val}", "validation: {}");
    fs::write(project.path().join("configs/small.yaml"), config).unwrap();
    let relative = ["--config", "configs/small.yaml", "--out", "run", "--set", "run.epochs=9", "--set", "run.epochs=1"];
    let train = "data.train={annotations: ../shapes/train.json, images: ../shapes/train}";
    let validation =
        ["--set", "data.validation.annotations=../shapes/val.json", "--set", "data.validation.images=../shapes/val"];
    let output = project.fit(&[&relative[..], &["--set", train, "--set", "optimizer.kind=sgd"], &validation].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let config = project.config("run/config.yaml");
    assert_eq!((config["run"]["epochs"].as_u64(), config["optimizer"]["kind"].as_str()), (Some(1), Some("sgd")));
    assert!(config["data"]["validation"][0]["annotations"].as_str().unwrap().ends_with("shapes/val.json"));

    for (argument, parts) in [
        ("run.epoch=3", &["`--set run.epoch=3`", "unknown field `epoch`", "`epochs`"][..]),
        ("run.epochs=many", &["`--set run.epochs=many`", "run.epochs", "many"]),
        ("run.epochs.last=3", &["`--set run.epochs.last=3`", "`run.epochs` is a value"]),
        ("augmentation.rotation=90", &["`--set augmentation.rotation=90`", "expected 0 to 1"]),
        ("data.train.annotations=none.json", &["none.json"]),
    ] {
        assert_contains(&project.refused(&["--set", argument]), parts);
    }
    project.configure(&CONFIG.replace("epochs: 2", "epochs: many"));
    let message = project.refused(&["--set", "run.seed=3"]);
    assert_contains(&message, &["retinanet.yaml", "run.epochs", "line 5"]);
    assert!(!message.contains("--set"), "{message}");
    assert_eq!(project.fit(&["--set", "run.epochs"]).status.code(), Some(2));

    project.configure(CONFIG);
    let output = trainer(project.path(), &["check", "--set", "model.classes=[{id: 1, name: nothing}]"]);
    assert_contains(&String::from_utf8_lossy(&output.stdout), &["nothing"]);
    let output = trainer(project.path(), &["bench", "--set", "run.batch_size=zero"]);
    assert_contains(&stderr(&output), &["`--set run.batch_size=zero`"]);
}

#[test]
fn init_writes_values_from_the_command_line_and_keeps_the_comments() {
    let project = Project::new();
    let arguments = [
        "run.workers=3",
        "run.seed=5",
        "data.train.annotations=my file.json",
        "data.train.list=names.txt",
        "augmentation.scale.max=2.0",
        "augmentation.close_mosaic=10",
        "schedule.milestones=[8, 11]",
        "model.classes=[{id: 1, name: cell}]",
        "model.heads.norm={kind: group}",
        "model.backbone.norm.kind=group",
    ];
    let sets = arguments.iter().flat_map(|argument| ["--set", argument]);
    let output = trainer(project.path(), &["init", "--out", "new.yaml"].into_iter().chain(sets).collect::<Vec<_>>());
    assert!(output.status.success(), "{}", stderr(&output));
    let config = project.config("new.yaml");
    assert_eq!((config["run"]["workers"].as_u64(), config["run"]["seed"].as_u64()), (Some(3), Some(5)));
    assert_eq!(config["data"]["train"]["annotations"].as_str(), Some("my file.json"));
    assert_eq!(config["model"]["backbone"]["norm"]["kind"].as_str(), Some("group"));
    let text = fs::read_to_string(project.path().join("new.yaml")).unwrap();
    let plain = trainer(project.path(), &["init", "--out", "plain.yaml"]);
    assert!(plain.status.success());
    let plain = fs::read_to_string(project.path().join("plain.yaml")).unwrap();
    let comments = |text: &str| text.matches("# ").count();
    // Of two settings, what is commented out is now set.
    assert_eq!(comments(&text) + 2, comments(&plain), "{text}");

    let refused = trainer(project.path(), &["init", "--out", "no.yaml", "--set", "run.epoch=3"]);
    assert_contains(&stderr(&refused), &["`--set run.epoch=3`", "unknown field `epoch`"]);
    assert!(!project.path().join("no.yaml").exists());
}

#[test]
fn finished_run_is_left_alone_or_lengthened() {
    let project = Project::new();
    let schedule =
        "schedule: {kind: step, warmup_steps: 1, milestones: [1]}\naugmentation: {mosaic: {probability: 0.5}}\n";
    project.configure(&format!("{CONFIG}\n{schedule}"));
    assert!(project.fit(&["--out", "whole", "--set", "run.epochs=4"]).status.success());
    assert!(project.fit(&["--out", "run"]).status.success());

    let files = || {
        let entries = fs::read_dir(project.path().join("run")).unwrap().map(|entry| entry.unwrap());
        let files = entries.map(|entry| (entry.file_name(), entry.metadata().unwrap().modified().unwrap()));
        files.filter(|(name, _)| name != ".lock").collect::<std::collections::BTreeMap<_, _>>()
    };
    let before = files();
    let resume = ["--resume", "--out", "run"];
    let output = project.fit(&resume);
    assert!(output.status.success(), "{}", stderr(&output));
    let next = "the run has finished its 2 epochs; to continue: trainer fit --resume --out run --set run.epochs=4";
    assert_contains(&stderr(&output), &[next]);
    assert_contains(&String::from_utf8_lossy(&output.stdout), &["best AP"]);
    for (set, message) in [
        ("run.seed=4", "`run.seed` cannot change"),
        ("model.pyramid.width=8", "`model.pyramid.width` cannot change"),
        ("schedule.milestones=[2]", "from 1 to 1"),
    ] {
        assert_contains(&project.refused(&[&resume[..], &["--set", set]].concat()), &[message]);
    }
    assert_eq!(files(), before);

    let longer = project.fit(&[&resume[..], &["--set", "run.epochs=4", "--set", "run.workers=1"]].concat());
    assert!(longer.status.success(), "{}", stderr(&longer));
    let message = "4 epochs instead of 2, of which 2 are done; the milestones are [1]: the learning rate stays";
    assert_contains(&stderr(&longer), &[message]);
    assert_eq!(project.config("run/config.yaml")["run"]["epochs"].as_u64(), Some(4));
    assert_eq!(project.config("run/config.yaml")["run"]["workers"].as_u64(), Some(1));
    assert!(project.checkpoint("run/last.safetensors") == project.checkpoint("whole/last.safetensors"));
    assert_eq!(project.validations("run"), project.validations("whole"));
    let report = fs::read_to_string(project.path().join("run/report.html")).unwrap();
    assert_contains(&report, &["epochs: 4"]);

    // Without a report, the run was killed after its last save.
    fs::remove_file(project.path().join("run/report.html")).unwrap();
    assert!(project.fit(&resume).status.success());
    assert!(project.path().join("run/report.html").exists());
}

#[test]
fn warmup_and_close_mosaic_beyond_the_run_give_a_warning() {
    let project = Project::new();
    let output = project.fit(&["--set", "augmentation.close_mosaic=2", "--set", "augmentation.mosaic.probability=1"]);
    let texts =
        ["`schedule.warmup_steps` is 100, but the run has only 4 steps", "`augmentation.close_mosaic` is 2, but"];
    assert_contains(&stderr(&output), &texts);
    let output = project.fit(&["--set", "schedule.warmup_steps=3"]);
    assert!(!stderr(&output).contains("warning"), "{}", stderr(&output));
    // Mosaics were never used, and do not affect other random numbers.
    let runs = ["retinanet-1", "retinanet-3"].map(|run| format!("runs/{run}/last.safetensors"));
    assert!(project.fit(&[]).status.success());
    assert!(project.checkpoint(&runs[0]) == project.checkpoint(&runs[1]));
}

#[test]
fn ap_of_validation_is_that_of_eval() {
    let project = Project::new();
    // Every anchor is a candidate for every class.
    let all = "model.postprocessing.score_threshold=0";
    for (run, more) in [
        ("plain", "run.seed=0"),
        ("soft", "model.postprocessing.soft_nms=0.5"),
        ("agnostic", "model.postprocessing.suppression=class_agnostic"),
        ("capped", "model.postprocessing.max_detections=150"),
    ] {
        assert!(project.fit(&["--out", run, "--set", all, "--set", more]).status.success());
        let validations = project.validations(run);
        let best = validations.iter().map(|v| v["AP"].as_f64().unwrap()).fold(f64::MIN, f64::max);
        assert!(best > 0.0, "{run}: {validations:?}");
        for (checkpoint, expected) in [("last", validations[1]["AP"].as_f64().unwrap()), ("best", best)] {
            let checkpoint = format!("{run}/{checkpoint}.safetensors");
            let evaluated = ["eval", "--checkpoint", &checkpoint, "--data", "shapes/val.json", "--json", "-"];
            let output = trainer(project.path(), &[&evaluated[..], &["--images", "shapes/val"]].concat());
            let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(report["AP"].as_f64(), Some(expected), "{checkpoint}: {}", stderr(&output));
        }
    }
}

#[test]
fn validation_loss_is_that_of_training() {
    let project = Project::new();
    // Training leaves out a crowd region and an invalid box.
    project.edit_annotations(|coco| {
        coco["annotations"][0]["iscrowd"] = 1.into();
        coco["annotations"][1]["bbox"] = serde_json::json!([900, 900, 10, 10]);
        coco["annotations"][2]["bbox"] = serde_json::json!([-5, 3, 40, 90]);
    });
    let config = CONFIG.replace("shapes/val", "shapes/train").replace("kind: batch", "kind: frozen_batch");
    let config = config.replace(
        "\nrun: {",
        "\n  bad_annotations: drop\naugmentation: {horizontal_flip: 0}\nrun: {precision: float32, ",
    );
    project.configure(&format!("{config}\noptimizer: {{learning_rate: 0.0}}\n"));
    for (run, normalizer, batch_size) in [("image", "image", 4), ("batch", "batch", 6)] {
        let set = [format!("loss.normalizer={normalizer}"), format!("run.batch_size={batch_size}")];
        let output = project.fit(&["--out", run, "--set", &set[0], "--set", &set[1]]);
        assert!(output.status.success(), "{}", stderr(&output));
        assert_contains(&stderr(&output), &["; validation: classification loss ", "AP50"]);
        let log = project.log(run);
        let epoch = log.iter().find(|line| line["validation"].is_object()).unwrap();
        for part in ["classification_loss", "box_loss"] {
            let [training, validation] = [&epoch[part], &epoch["validation"][part]].map(|loss| loss.as_f64().unwrap());
            // Sums of float32 in another order.
            assert!(training > 0.0 && (training / validation - 1.0).abs() < 1e-5, "{part}: {training}, {validation}");
        }
    }
}

#[test]
fn run_that_cannot_start_blocks_no_folder() {
    let project = Project::new();
    assert!(project.fit(&[]).status.success());
    let valid = fs::read(project.path().join("shapes/train.json")).unwrap();
    project.edit_annotations(|coco| coco["annotations"][0]["bbox"] = serde_json::json!([1, 1, 0, 5]));
    for arguments in [&[][..], &["--out", "run"]] {
        assert_contains(&project.refused(arguments), &["area"]);
    }
    assert_eq!(fs::read_link(project.path().join("runs/latest")).unwrap(), PathBuf::from("retinanet-1"));
    fs::write(project.path().join("shapes/train.json"), valid).unwrap();
    assert!(project.fit(&["--out", "run"]).status.success());
    assert!(project.fit(&[]).status.success());
    assert_eq!(fs::read_link(project.path().join("runs/latest")).unwrap(), PathBuf::from("retinanet-2"));
}

#[test]
fn resuming_with_another_configuration_is_an_error() {
    let project = Project::new();
    assert!(project.fit(&["--out", "run"]).status.success());
    let again = ["--resume", "--out", "run", "--config", "retinanet.yaml"];
    assert!(project.fit(&again).status.success(), "resuming a finished run is not an error");
    project.configure(&CONFIG.replace("epochs: 2", "epochs: 3"));
    assert_contains(&project.refused(&again), &["retinanet.yaml", "run", "started with"]);
}

#[test]
fn frozen_norms_without_pretrained_weights_give_a_warning() {
    let project = Project::new();
    project.configure(&CONFIG.replace("kind: batch", "kind: frozen_batch"));
    let output = project.fit(&[]);
    assert!(output.status.success());
    assert_contains(&stderr(&output), &["warning", "frozen_batch", "from scratch"]);
}

#[test]
fn invalid_annotations_are_refused_or_dropped() {
    let project = Project::new();
    project.edit_annotations(|coco| coco["annotations"][0]["bbox"] = serde_json::json!([1, 1, 0, 5]));
    assert_contains(&project.refused(&[]), &["train.json", "area", "bad_annotations: drop"]);
    project.configure(&CONFIG.replace("\nrun:", "\n  bad_annotations: drop\nrun:"));
    let output = project.fit(&[]);
    assert!(output.status.success());
    assert_contains(&stderr(&output), &["warning", "train.json", "area"]);

    project.configure(CONFIG);
    for (field, value) in [("category_id", 77), ("image_id", 99_999)] {
        let project = Project::new();
        project.edit_annotations(|coco| coco["annotations"][0][field] = value.into());
        assert_contains(&project.refused(&[]), &["train.json", &value.to_string()]);
    }
    project.edit_annotations(|coco| coco["annotations"][0]["bbox"] = serde_json::json!([900, 900, 10, 10]));
    assert_contains(&project.refused(&[]), &["train.json", "outside"]);
}

#[test]
fn errors_name_missing_unreadable_and_wrongly_sized_images() {
    let project = Project::new();
    project.edit_annotations(|coco| coco["images"][2]["file_name"] = "gone.png".into());
    assert_contains(&project.refused(&[]), &["gone.png", "train.json", "bad_annotations: drop"]);
    project.configure(&CONFIG.replace("\nrun:", "\n  bad_annotations: drop\nrun:"));
    let output = project.fit(&[]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_contains(
        &stderr(&output),
        &["warning", "1 image that cannot be read, dropped: gone.png (not found", "5 training images"],
    );

    let project = Project::new();
    project.edit_annotations(|coco| coco["images"][2]["width"] = 640.into());
    assert_contains(&project.refused(&[]), &["64x64", "640x64"]);

    let project = Project::new();
    fs::write(project.path().join("shapes/val/00001.png"), b"no image").unwrap();
    assert_contains(&project.refused(&[]), &["1 of 3", "00001.png", "val.json", "bad_annotations: drop"]);
}

/// The truncation of an image is noticed only when it is decoded, in training or in validation. The last step of an
/// epoch has fewer batches than the others here.
#[test]
fn truncated_image_stops_the_run_which_can_be_resumed() {
    for split in ["train", "val"] {
        let project = Project::new();
        project.configure(&format!(
            "{}\noptimizer: {{gradient_accumulation_steps: 4}}\n",
            CONFIG.replace("epochs: 2, batch_size: 4", "epochs: 2, batch_size: 1")
        ));
        let image = project.path().join("shapes").join(split).join("00002.png");
        let intact = fs::read(&image).unwrap();
        fs::write(&image, &intact[..intact.len() / 2]).unwrap();
        let resumption = "trainer fit --resume --out run";
        assert_contains(
            &project.refused(&["--out", "run"]),
            &["00002.png", "truncated", "saved after step", resumption],
        );
        fs::write(&image, intact).unwrap();
        let resumed = project.fit(&["--resume", "--out", "run"]);
        assert!(resumed.status.success(), "{}", stderr(&resumed));
        assert!(project.fit(&["--out", "whole"]).status.success());
        assert_eq!(project.checkpoint("run/last.safetensors"), project.checkpoint("whole/last.safetensors"), "{split}");
    }
}

#[test]
fn unusable_folders_are_reported_before_training() {
    let project = Project::new();
    fs::write(project.path().join("file"), b"").unwrap();
    assert_contains(&project.refused(&["--out", "file/run"]), &["file/run"]);
    assert!(project.fit(&["--out", "run"]).status.success());
    assert_contains(&project.refused(&["--out", "run"]), &["already contains a run", "--resume"]);
}

/// Four runs that start at the same moment, then runs with the folder of another run.
#[test]
fn concurrent_runs_use_separate_folders() {
    let project = Project::new();
    let runs: Vec<_> = (0..4)
        .map(|_| command(project.path(), &["fit"]).stderr(std::process::Stdio::piped()).spawn().unwrap())
        .collect();
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
    let mut child =
        command(project.path(), &["fit", "--out", "long"]).stderr(std::process::Stdio::null()).spawn().unwrap();
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

/// Simulates running out of memory on the CPU by a limit on the memory of the process.
#[test]
fn out_of_memory_ends_the_run_with_advice_after_saving() {
    let project = Project::new();
    let program = env!("CARGO_BIN_EXE_trainer");
    let limited = |arguments: &str, kibibytes: u64| {
        let script = format!("ulimit -v {kibibytes}; exec {program} fit {arguments}");
        let mut command = Command::new("sh");
        command.args(["-c", &script]).current_dir(project.path()).env("OMP_NUM_THREADS", "1");
        command.output().unwrap()
    };
    // The first epoch trains on small images. Larger ones, in the changed configuration, exceed the limit.
    project.configure(&CONFIG.replace("epochs: 2", "epochs: 1"));
    assert!(project.fit(&["--out", "run"]).status.success());
    let config = project.path().join("run/config.yaml");
    let larger = fs::read_to_string(&config).unwrap().replace("epochs: 1", "epochs: 2");
    fs::write(&config, larger.replace("_side: 64", "_side: 2048")).unwrap();
    let output = limited("--resume --out run", 4_200_000);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_contains(
        &text,
        &["tried to allocate", "bytes", "`run.batch_size` (4)", "longer_side` (2048)", "saved after step 2"],
    );
    assert!(!text.contains("panicked") && !text.contains("backtrace"), "{text}");
}

#[test]
fn run_resumes_on_its_device() {
    let project = Project::new();
    assert!(project.fit(&["--out", "run"]).status.success());
    // As if trained on a GPU that does not exist.
    let path = project.path().join("run/state.safetensors");
    let state = fs::read(&path).unwrap();
    let (length, rest) = state.split_at(8);
    let (header, data) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
    let header = String::from_utf8(header.to_vec()).unwrap();
    assert!(header.contains(r#"\"device\":\"cpu\""#), "{header}");
    let header = header.replace(r#"\"device\":\"cpu\""#, r#"\"device\":\"cuda:99\""#);
    fs::write(&path, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()).unwrap();
    let longer = ["--resume", "--out", "run", "--set", "run.epochs=3"];
    assert_contains(&project.refused(&longer), &["used cuda:99", "--device", "CUDA"]);
    let output = project.fit(&[&longer[..], &["--device", "cpu"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    assert_contains(&stderr(&output), &["used cuda:99 and continues on cpu"]);
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
        let mut config: serde_yaml::Value =
            serde_yaml::from_str(&CONFIG.replace("longer_side: 64", "longer_side: 128")).unwrap();
        if !section.is_empty() {
            let entry: serde_yaml::Mapping = serde_yaml::from_str(entry).unwrap();
            let empty = || serde_yaml::Value::Mapping(serde_yaml::Mapping::new());
            let section = config.as_mapping_mut().unwrap().entry(section.into()).or_insert_with(empty);
            section.as_mapping_mut().unwrap().extend(entry);
        }
        project.configure(&serde_yaml::to_string(&config).unwrap());
        let output = project.fit(&["--out", out]);
        assert!(output.status.success(), "{entry}: {}", stderr(&output));
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
fn report_shows_runs_at_any_time_and_beside_each_other() {
    let project = Project::new();
    assert!(project.fit(&["--out", "first"]).status.success());
    let data = |page: &str| -> serde_json::Value {
        let page = fs::read_to_string(project.path().join(page)).unwrap();
        let data = page.split_once("id=\"data\">").unwrap().1.split_once("</script>").unwrap().0;
        serde_json::from_str(data).unwrap()
    };
    let report = |arguments: &[&str]| trainer(project.path(), &[&["report"], arguments].concat());
    let written = data("first/report.html");
    let run = &written["runs"][0];
    assert!(run["sessions"][0]["command"].as_str().unwrap().ends_with("fit --out first"), "{run}");
    let best = project.log("first").into_iter().filter_map(|line| line["validation"]["AP"].as_f64()).reduce(f64::max);
    assert_eq!(run["results"]["summary"]["AP"].as_f64(), best);

    // A run that is being written.
    fs::create_dir(project.path().join("second")).unwrap();
    let log = fs::read_to_string(project.path().join("first/log.jsonl")).unwrap();
    fs::write(project.path().join("second/log.jsonl"), format!("{}\n?\n{{\"st", log.lines().next().unwrap())).unwrap();
    fs::copy(project.path().join("first/config.yaml"), project.path().join("second/config.yaml")).unwrap();
    let output = report(&["second"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "wrote `second/report.html`\n");
    assert_contains(&stderr(&output), &["warning: `second`: log.jsonl is damaged; left out line 2"]);
    assert!(data("second/report.html")["runs"][0]["results"].is_null());

    assert!(report(&["first", "second", "--out", "both.html"]).status.success());
    assert_eq!(data("both.html")["runs"].as_array().unwrap().len(), 2);
    assert_eq!(data("both.html")["runs"][0]["results"], run["results"]);
    for (arguments, message) in [
        (&["first", "second"][..], "pass one with --out"),
        (&["shapes"], "`shapes` contains no run"),
        (&[], "`runs/latest` contains no run"),
        (&["first", "--out", "none/report.html"], "cannot write the report `none/report.html`"),
    ] {
        let output = report(arguments);
        assert_eq!(output.status.code(), Some(1));
        assert_contains(&stderr(&output), &[message]);
    }
}
