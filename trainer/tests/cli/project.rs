//! Folders in which the program runs, with data and configurations for networks that train in a second.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use models::Checkpoint;
use serde_json::Value;
use tempfile::TempDir;

/// Trains the smallest network, 4 million parameters, for two epochs of two steps. Its saves have a third of the bytes
/// of a ResNet-18's.
pub(crate) const CONFIG: &str = "
data:
  train: {annotations: shapes/train.json, images: shapes/train}
  validation: {annotations: shapes/val.json, images: shapes/val}
run: {epochs: 2, batch_size: 4, workers: 2}
model:
  backbone: {depth: 50, width_per_group: 4, norm: {kind: batch}}
  pyramid: {width: 16}
  heads: {width: 16, depth: 1}
  preprocessing: {shorter_side: 64, longer_side: 64}
";

pub(crate) fn trainer(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, arguments).output().unwrap()
}

/// One OpenMP thread per process, because the tests run in parallel. With settings of the allocator, whichever they
/// are, the program does not restart itself, which would load libtorch again.
pub(crate) fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
    command.current_dir(folder).args(arguments);
    command.env("OMP_NUM_THREADS", "1").env("GLIBC_TUNABLES", "glibc.malloc.mmap_max=0");
    command
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn assert_contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

/// A data set of 6 and 3 images, and `CONFIG`.
static DRAWN: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = empty_folder("drawn");
    draw(&folder, "6", "3");
    fs::write(folder.join("retinanet.yaml"), CONFIG).unwrap();
    folder
});

/// A folder with data and a configuration, in which the program runs.
pub(crate) struct Project(TempDir);

impl Project {
    pub(crate) fn new() -> Self {
        Self::copy(&DRAWN)
    }

    /// A project with its own data set, of so many images.
    pub(crate) fn drawn(train: &str, validation: &str, config: &str) -> Self {
        let project = Self(tempfile::tempdir().unwrap());
        draw(project.path(), train, validation);
        project.configure(config);
        project
    }

    /// A project in which `fit --out run` has finished.
    pub(crate) fn with_run() -> Self {
        static TRAINED: LazyLock<PathBuf> = LazyLock::new(|| {
            let folder = empty_folder("trained");
            copy(&DRAWN, &folder);
            let output = trainer(&folder, &["fit", "--out", "run"]);
            assert!(output.status.success(), "{}", stderr(&output));
            folder
        });
        let project = Self::copy(&TRAINED);
        // The configuration of a run has absolute paths.
        let [old, new] = [&*TRAINED, project.path()].map(|path| path.to_str().unwrap());
        let config = project.read("run/config.yaml");
        assert!(config.contains(old), "{config}");
        fs::write(project.path().join("run/config.yaml"), config.replace(old, new)).unwrap();
        project
    }

    fn copy(folder: &Path) -> Self {
        let project = Self(tempfile::tempdir().unwrap());
        copy(folder, project.path());
        project
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path().join(path)).unwrap()
    }

    pub(crate) fn json(&self, path: &str) -> Value {
        serde_json::from_str(&self.read(path)).unwrap()
    }

    pub(crate) fn configure(&self, config: &str) {
        fs::write(self.path().join("retinanet.yaml"), config).unwrap();
    }

    pub(crate) fn fit(&self, arguments: &[&str]) -> Output {
        trainer(self.path(), &[&["fit"], arguments].concat())
    }

    /// Runs `fit`, asserts that it succeeds, and returns its stderr.
    pub(crate) fn fitted(&self, arguments: &[&str]) -> String {
        let output = self.fit(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        stderr(&output)
    }

    /// Runs `fit`, asserts that it fails, and returns its stderr.
    pub(crate) fn refused(&self, arguments: &[&str]) -> String {
        let output = self.fit(arguments);
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        stderr(&output)
    }

    pub(crate) fn edit_annotations(&self, edit: impl Fn(&mut Value)) {
        self.edit_json("shapes/train.json", edit);
    }

    pub(crate) fn edit_json(&self, path: &str, edit: impl Fn(&mut Value)) {
        let mut value = self.json(path);
        edit(&mut value);
        fs::write(self.path().join(path), value.to_string()).unwrap();
    }

    /// The number of steps in the saved state of a run in its first epoch.
    pub(crate) fn steps_saved(&self, run: &str) -> u64 {
        let bytes = fs::read(self.path().join(run).join("state.safetensors")).unwrap();
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let progress: Value = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["progress"]).unwrap();
        assert_eq!(progress["epochs"], 0);
        progress["steps"].as_u64().unwrap()
    }

    /// The lines of a run's log.
    pub(crate) fn log(&self, run: &str) -> Vec<Value> {
        let log = self.read(&format!("{run}/log.jsonl"));
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The validations of a run.
    pub(crate) fn validations(&self, run: &str) -> Vec<Value> {
        self.log(run).into_iter().map(|mut line| line["validation"].take()).filter(Value::is_object).collect()
    }

    pub(crate) fn config(&self, path: &str) -> serde_yaml::Value {
        serde_yaml::from_str(&self.read(path)).unwrap()
    }

    pub(crate) fn checkpoint(&self, path: &str) -> Checkpoint {
        Checkpoint::open(&self.path().join(path)).unwrap()
    }
}

/// Draws a data set of so many images in the folder `shapes`.
fn draw(folder: &Path, train: &str, validation: &str) {
    let size = ["--width", "64", "--height", "64", "--train", train, "--val", validation, "--test", "0"];
    let output = trainer(folder, &[&["synth", "--out", "shapes"], size.as_slice()].concat());
    assert!(output.status.success(), "{}", stderr(&output));
}

/// An empty folder below `target`, which the next run of the tests replaces.
fn empty_folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// Copies the files of a folder with their times.
fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status().unwrap().success());
}
