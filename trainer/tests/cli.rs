//! The program `trainer`, from outside.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use models::Checkpoint;
use tempfile::TempDir;

fn trainer(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, arguments).output().unwrap()
}

/// One thread each, because the tests run side by side.
fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
    command.current_dir(folder).args(arguments).env("OMP_NUM_THREADS", "1");
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A folder with a drawn data set and a configuration that trains a small network on it within seconds.
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

    /// Trains, and says what stderr holds of the failure.
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.fit(arguments);
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        stderr(&output)
    }

    fn edit_truth(&self, edit: impl Fn(&mut serde_json::Value)) {
        let path = self.path().join("shapes/train.json");
        let mut truth = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        edit(&mut truth);
        fs::write(&path, truth.to_string()).unwrap();
    }

    fn checkpoint(&self, path: &str) -> Checkpoint {
        Checkpoint::open(&self.path().join(path)).unwrap()
    }
}

const CONFIG: &str = "
data:
  train: {annotations: shapes/train.json, pictures: shapes/train}
  validation: {annotations: shapes/val.json, pictures: shapes/val}
run: {epochs: 2, batch_size: 4, workers: 2}
model:
  backbone: {depth: 18, norm: {kind: batch}}
  pyramid: {width: 16}
  heads: {width: 16, depth: 1}
  preprocessing: {shorter_side: 64, longer_side: 64}
";

fn assert_holds(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

#[test]
fn a_run_leaves_checkpoints_log_and_configuration_and_repeats_to_the_bit() {
    let project = Project::new();
    let output = project.fit(&[]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_holds(&String::from_utf8_lossy(&output.stdout), &["AP", "best.safetensors"]);

    let first = project.checkpoint("runs/latest/last.safetensors");
    assert_eq!(first.provenance.epoch, Some(2));
    assert_eq!(first.spec.classes.len(), first.probe.classification.dim().2);
    project.checkpoint("runs/latest/best.safetensors");
    let log = fs::read_to_string(project.path().join("runs/latest/log.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.iter().filter(|line| line["learning_rate"].is_number()).count(), 4, "two steps in two epochs");
    assert_eq!(lines.iter().filter(|line| line["validation"]["AP50"].is_number()).count(), 2);
    assert_holds(
        &fs::read_to_string(project.path().join("runs/latest/config.yaml")).unwrap(),
        &["epochs: 2", "clip_norm"],
    );

    assert!(project.fit(&[]).status.success());
    assert_eq!(fs::read_link(project.path().join("runs/latest")).unwrap(), PathBuf::from("retinanet-2"));
    assert_eq!(project.checkpoint("runs/retinanet-2/last.safetensors"), first);
}

#[test]
fn variations_repeat_to_the_bit_with_any_cache_and_number_of_workers() {
    let project = Project::new();
    let config = |cache: &str| {
        let colors = "brightness: {probability: 0.5}, contrast: {probability: 0.5}, saturation: {probability: 0.5}";
        let places = "vertical_flip: 0.5, rotation: 0.5, crop: {probability: 0.5}, mosaic: {probability: 0.5}";
        let rest = "hue: {probability: 0.5}, scale: {probability: 0.5}";
        let cached = CONFIG.replace("\nrun:", &format!("\n  cache: {cache}\nrun:"));
        format!("augmentation: {{{places}, {colors}, {rest}}}{cached}")
    };
    project.configure(&config("{kind: none}"));
    let output = project.fit(&["--out", "none"]);
    assert!(output.status.success(), "{}", stderr(&output));
    // The second one finds what the first has kept.
    for (out, cache) in [("memory", "{kind: memory}"), ("disk", "{kind: disk}"), ("again", "{kind: disk}")] {
        project.configure(&config(cache).replace("workers: 2", "workers: 3"));
        let output = project.fit(&["--out", out]);
        assert!(output.status.success(), "{}", stderr(&output));
        let weights = |run: &str| project.checkpoint(&format!("{run}/last.safetensors"));
        assert_eq!(weights(out), weights("none"), "{cache}");
    }
    let kept = fs::read_dir(project.path().join("picture-cache")).unwrap().count();
    assert_eq!(kept, 9, "six pictures to learn from, three to validate on");
}

/// Ctrl-C in the middle of an epoch, then `--resume`: the same weights as without.
#[test]
fn an_interrupted_run_goes_on_as_if_nothing_had_happened() {
    let project = Project::new();
    project.configure(&CONFIG.replace("epochs: 2, batch_size: 4", "epochs: 3, batch_size: 2"));
    assert!(project.fit(&["--out", "whole"]).status.success());

    let mut command = command(project.path(), &["fit", "--out", "broken"]);
    let child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let log = project.path().join("broken/log.jsonl");
    while fs::read_to_string(&log).map_or(0, |text| text.lines().count()) < 2 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_holds(
        &stderr(&output),
        &["interrupted; stopped after step", "trainer fit --resume --out broken --device cpu"],
    );

    let resumed = project.fit(&["--resume", "--out", "broken"]);
    assert!(resumed.status.success(), "{}", stderr(&resumed));
    assert_eq!(project.checkpoint("broken/last.safetensors"), project.checkpoint("whole/last.safetensors"));
}

#[test]
fn a_wrong_configuration_is_refused_with_key_and_line() {
    let project = Project::new();
    project.configure(&CONFIG.replace("epochs: 2", "epoch: 2"));
    assert_holds(&project.refused(&[]), &["retinanet.yaml", "`epoch`", "line 5"]);
    project.configure(&CONFIG.replace("epochs: 2", "epochs: many"));
    assert_holds(&project.refused(&[]), &["run.epochs", "many", "line 5"]);
    project.configure(&CONFIG.replace("depth: 18", "depth: 19"));
    assert_holds(&project.refused(&[]), &["backbone.depth", "19", "152"]);
    project.configure(&format!("augmentation: {{mosiac: {{probability: 1}}}}{CONFIG}"));
    assert_holds(&project.refused(&[]), &["retinanet.yaml", "`mosiac`", "line 1"]);
    project.configure(&format!("augmentation: {{rotation: 90}}{CONFIG}"));
    assert_holds(&project.refused(&[]), &["retinanet.yaml", "`augmentation.rotation` is 90"]);
    project.configure(&CONFIG.replace("\nrun:", "\n  cache: {kind: memory, gigabytes: 0}\nrun:"));
    assert_holds(&project.refused(&[]), &["retinanet.yaml", "`data.cache.gigabytes` is 0"]);
    assert_holds(&project.refused(&["--config", "none.yaml"]), &["none.yaml", "trainer init"]);
    assert!(!project.path().join("runs").exists(), "nothing is made for a run that cannot begin");
}

#[test]
fn a_run_that_cannot_begin_is_in_nobodys_way() {
    let project = Project::new();
    assert!(project.fit(&[]).status.success());
    let sound = fs::read(project.path().join("shapes/train.json")).unwrap();
    project.edit_truth(|truth| truth["annotations"][0]["bbox"] = serde_json::json!([1, 1, 0, 5]));
    for arguments in [&[][..], &["--out", "run"]] {
        assert_holds(&project.refused(arguments), &["area"]);
    }
    assert_eq!(fs::read_link(project.path().join("runs/latest")).unwrap(), PathBuf::from("retinanet-1"));
    fs::write(project.path().join("shapes/train.json"), sound).unwrap();
    assert!(project.fit(&["--out", "run"]).status.success());
    assert!(project.fit(&[]).status.success());
    assert_eq!(fs::read_link(project.path().join("runs/latest")).unwrap(), PathBuf::from("retinanet-2"));
}

#[test]
fn a_resumed_run_keeps_its_configuration() {
    let project = Project::new();
    assert!(project.fit(&["--out", "run"]).status.success());
    let again = ["--resume", "--out", "run", "--config", "retinanet.yaml"];
    assert!(project.fit(&again).status.success(), "nothing is left to do, which is no error");
    project.configure(&CONFIG.replace("epochs: 2", "epochs: 3"));
    assert_holds(&project.refused(&again), &["retinanet.yaml", "run", "started with"]);
}

#[test]
fn frozen_norms_without_pretrained_weights_are_warned_of() {
    let project = Project::new();
    project.configure(&CONFIG.replace("kind: batch", "kind: frozen_batch"));
    let output = project.fit(&[]);
    assert!(output.status.success());
    assert_holds(&stderr(&output), &["warning", "frozen_batch", "from scratch"]);
}

#[test]
fn annotations_that_make_no_sense_are_refused_or_dropped() {
    let project = Project::new();
    project.edit_truth(|truth| truth["annotations"][0]["bbox"] = serde_json::json!([1, 1, 0, 5]));
    assert_holds(&project.refused(&[]), &["train.json", "area", "bad_annotations: drop"]);
    project.configure(&CONFIG.replace("\nrun:", "\n  bad_annotations: drop\nrun:"));
    let output = project.fit(&[]);
    assert!(output.status.success());
    assert_holds(&stderr(&output), &["warning", "train.json", "area"]);

    project.configure(CONFIG);
    for (field, value) in [("category_id", 77), ("image_id", 99_999)] {
        let project = Project::new();
        project.edit_truth(|truth| truth["annotations"][0][field] = value.into());
        assert_holds(&project.refused(&[]), &["train.json", &value.to_string()]);
    }
    project.edit_truth(|truth| truth["annotations"][0]["bbox"] = serde_json::json!([900, 900, 10, 10]));
    assert_holds(&project.refused(&[]), &["train.json", "outside"]);
}

#[test]
fn missing_misdescribed_and_unreadable_pictures_are_named() {
    let project = Project::new();
    project.edit_truth(|truth| truth["images"][2]["file_name"] = "gone.png".into());
    assert_holds(&project.refused(&[]), &["gone.png", "train.json", "bad_annotations: drop"]);
    project.configure(&CONFIG.replace("\nrun:", "\n  bad_annotations: drop\nrun:"));
    let output = project.fit(&[]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_holds(&stderr(&output), &["warning", "1 of 6 pictures", "gone.png", "5 pictures to learn from"]);

    let project = Project::new();
    project.edit_truth(|truth| truth["images"][2]["width"] = 640.into());
    assert_holds(&project.refused(&[]), &["64x64", "640x64"]);

    let project = Project::new();
    let pictures = fs::read_dir(project.path().join("shapes/train")).unwrap();
    let picture = pictures.map(|entry| entry.unwrap().path()).min().unwrap();
    let sound = fs::read(&picture).unwrap();
    fs::write(&picture, b"no picture").unwrap();
    let name = picture.file_name().unwrap().to_str().unwrap();
    assert_holds(&project.refused(&["--out", "run"]), &[name, "all is saved", "trainer fit --resume --out run"]);
    fs::write(&picture, sound).unwrap();
    let resumed = project.fit(&["--resume", "--out", "run"]);
    assert!(resumed.status.success(), "{}", stderr(&resumed));
    assert!(project.fit(&["--out", "whole"]).status.success());
    assert_eq!(project.checkpoint("run/last.safetensors"), project.checkpoint("whole/last.safetensors"));
}

#[test]
fn folders_that_cannot_be_used_are_found_before_the_work() {
    let project = Project::new();
    fs::write(project.path().join("file"), b"").unwrap();
    assert_holds(&project.refused(&["--out", "file/run"]), &["file/run"]);
    assert_holds(&project.refused(&["--resume"]), &["runs/latest", "without --resume"]);
    assert!(project.fit(&["--out", "run"]).status.success());
    assert_holds(&project.refused(&["--out", "run"]), &["holds a run already", "--resume"]);
}

#[test]
fn a_device_that_is_not_there_is_an_error() {
    let project = Project::new();
    let output = project.fit(&["--device", "tpu"]);
    assert_eq!(output.status.code(), Some(2));
    assert_holds(&stderr(&output), &["cpu, cuda or cuda:N"]);
    // Also where there is a GPU: nobody has this many.
    assert_holds(&project.refused(&["--device", "cuda:99"]), &["CUDA"]);
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_with_the_names_of_the_batch() {
    let project = Project::new();
    let config = "optimizer: {kind: sgd, learning_rate: 1e30, clip_norm: null}\nschedule: {warmup_steps: 0}\nrun:";
    project.configure(&CONFIG.replace("\nrun:", &format!("\n{config}")));
    let message = project.refused(&[]);
    assert_holds(&message, &["no longer finite", "learning_rate", ".png"]);
}
