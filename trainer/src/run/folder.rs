//! The folder of a training run, with the state from which the run can be resumed.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fs::{self, File, TryLockError};
use std::io::{BufReader, Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use models::{Checkpoint, write_atomically};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use super::state::RunState;
use crate::config::TrainConfig;
use crate::parameters::to_array;
use crate::progress::warn;
use crate::training_model::TrainingModel;

/// Key of [`RunState`] in the state file's metadata.
const RUN_STATE_KEY: &str = "progress";

/// Default folder of all runs.
const RUNS: &str = "runs";

/// The file with the state of a run.
const STATE: &str = "state.safetensors";

/// The file that marks a folder as a run folder.
pub(crate) const CONFIG: &str = "config.yaml";

/// The folder of the checkpoints that a run keeps.
const KEPT: &str = "checkpoints";

/// The file that a run locks. It contains the process id. When a run ends, its lock is released but the file remains:
/// otherwise two processes could lock two different files of this name.
const LOCK: &str = ".lock";

/// The folder of one run, locked against other processes.
#[derive(Debug)]
pub(crate) struct RunFolder {
    path: PathBuf,
    /// Locked until it is closed, at the latest when the process ends.
    _lock: File,
}

impl RunFolder {
    /// Creates and locks the folder of a new run: `out`, or the next free `runs/NAME-N`. It becomes a run folder only
    /// when the run [begins](Self::begin).
    ///
    /// # Errors
    /// When the folder already contains a run, is locked by another process, or cannot be written.
    pub(crate) fn create(out: Option<&Path>, name: &str) -> anyhow::Result<Self> {
        let claim = |path: PathBuf| {
            fs::create_dir_all(&path).with_context(|| format!("cannot create the folder `{}`", path.display()))?;
            Self::lock(path)
        };
        if let Some(out) = out {
            let folder = claim(out.to_owned())?;
            folder.check_is_new()?;
            return Ok(folder);
        }
        for number in 1.. {
            let path = Path::new(RUNS).join(format!("{name}-{number}"));
            // Until the folder is locked, another process may take it.
            if path.exists() && !is_unused(&path) {
                continue;
            }
            match claim(path) {
                Ok(folder) if is_unused(&folder.path) => return Ok(folder),
                Err(error) if !error.is::<InUse>() => return Err(error),
                _ => {}
            }
        }
        bail!("all run numbers are in use; pass a folder with --out")
    }

    /// Locks a folder for this process.
    fn lock(path: PathBuf) -> anyhow::Result<Self> {
        let context = || format!("cannot write to the folder `{}`", path.display());
        let file = path.join(LOCK);
        let mut lock =
            File::options().create(true).truncate(false).read(true).write(true).open(&file).with_context(context)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut process = String::new();
                let _ = lock.read_to_string(&mut process);
                return Err(InUse { path, process: process.trim().to_owned() }.into());
            }
            Err(TryLockError::Error(error)) => warn(format_args!(
                "cannot lock `{}` ({error}); make sure that no other run writes to it",
                path.display()
            )),
        }
        // Only for the error message of another process.
        let written = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
        written.with_context(context)?;
        Ok(Self { path, _lock: lock })
    }

    fn check_is_new(&self) -> anyhow::Result<()> {
        ensure!(
            !self.config_path().exists(),
            "`{}` already contains a run; pass another --out, or --resume to continue the run",
            self.path.display()
        );
        Ok(())
    }

    /// The folder of the run to resume: `out`, or that of `runs/latest`; `None` if it contains no run.
    pub(crate) fn of_run(out: Option<&Path>) -> Option<PathBuf> {
        let path = linked(out.unwrap_or(&Path::new(RUNS).join("latest")));
        path.join(CONFIG).exists().then_some(path)
    }

    /// Locks the folder of a run to resume.
    ///
    /// # Errors
    /// When the folder is locked by another process, or cannot be written.
    pub(crate) fn existing(path: PathBuf) -> anyhow::Result<Self> {
        let folder = Self::lock(path)?;
        folder.remove_unfinished()?;
        Ok(folder)
    }

    /// Removes partial files that a run left when it was killed while saving.
    fn remove_unfinished(&self) -> anyhow::Result<()> {
        let context = || format!("cannot remove partial files from `{}`", self.path.display());
        let kept = fs::read_dir(self.path.join(KEPT)).into_iter().flatten();
        for entry in fs::read_dir(&self.path).with_context(context)?.chain(kept) {
            let path = entry.with_context(context)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with('.') && name.ends_with(".partial") {
                fs::remove_file(&path).with_context(|| format!("cannot remove `{}`", path.display()))?;
            }
        }
        Ok(())
    }

    /// The path of the folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The command that resumes the run in the folder `path`.
    pub(crate) fn resume_command(path: &Path) -> String {
        let path = path.to_string_lossy();
        // Only names with a NUL, which no path has, cannot be quoted.
        let quoted = shlex::try_quote(&path).unwrap_or(Cow::Borrowed(&path));
        format!("trainer fit --resume --out {quoted}")
    }

    /// The run's configuration with all values.
    fn config_path(&self) -> PathBuf {
        self.path.join(CONFIG)
    }

    /// The checkpoint with the best AP.
    pub(crate) fn best_path(&self) -> PathBuf {
        self.path.join("best.safetensors")
    }

    /// The last checkpoint.
    fn last_path(&self) -> PathBuf {
        self.path.join("last.safetensors")
    }

    /// The size of the last checkpoint in megabytes; 0 if there is none.
    pub(crate) fn checkpoint_megabytes(&self) -> f64 {
        fs::metadata(self.last_path()).map_or(0.0, |file| file.len() as f64 / 1e6)
    }

    /// The checkpoint to keep of a validation after `steps` steps.
    pub(crate) fn kept_path(&self, steps: u64) -> PathBuf {
        self.path.join(KEPT).join(format!("step-{steps:07}.safetensors"))
    }

    fn state_path(&self) -> PathBuf {
        self.path.join(STATE)
    }

    /// Whether the report is as new as the saved state.
    pub(crate) fn has_report(&self) -> bool {
        let modified = |path: PathBuf| fs::metadata(path).and_then(|metadata| metadata.modified());
        modified(self.path.join("report.html"))
            .is_ok_and(|report| modified(self.state_path()).is_ok_and(|state| report >= state))
    }

    /// Replaces the configuration.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn write_config(&self, config: &TrainConfig) -> anyhow::Result<()> {
        let text = serde_yaml::to_string(config)?;
        write_atomically(&self.config_path(), |file| file.write_all(text.as_bytes()))
            .with_context(|| format!("cannot write `{}`", self.config_path().display()))
    }

    /// Writes the configuration, which makes this a run folder, and updates the link `runs/latest` if the folder is in
    /// `runs`. Must be called after the first [`save`](Self::save), so that every run can be resumed.
    ///
    /// # Errors
    /// When the configuration or the link cannot be written.
    pub(crate) fn begin(&self, config: &TrainConfig) -> anyhow::Result<()> {
        self.write_config(config)?;
        if self.path.parent() == Some(Path::new(RUNS)) { self.update_latest_link() } else { Ok(()) }
    }

    /// Saves the last checkpoint and the state of the run, and the checkpoint also as each of `copies`.
    ///
    /// # Errors
    /// When a file cannot be written. The earlier file then remains unchanged.
    pub(crate) fn save(
        &self,
        model: &TrainingModel,
        state: &RunState,
        checkpoint: &Checkpoint,
        copies: impl IntoIterator<Item = PathBuf>,
    ) -> anyhow::Result<()> {
        for path in copies {
            let folder = path.parent().unwrap_or(&self.path);
            // Not the folder of the run: if that was moved away, the run is not to go on without what is in it.
            if !folder.exists() && folder != self.path {
                fs::create_dir(folder).with_context(|| format!("cannot create the folder `{}`", folder.display()))?;
            }
            checkpoint.write(&path)?;
        }
        checkpoint.write(&self.last_path())?;
        let path = self.state_path();
        self.write_state(model, state).with_context(|| format!("cannot write `{}`", path.display()))
    }

    fn write_state(&self, model: &TrainingModel, state: &RunState) -> anyhow::Result<()> {
        let arrays: Vec<_> = model.state().into_iter().map(|(name, tensor)| (name, to_array(&tensor))).collect();
        let views = arrays.iter().map(|(name, array)| {
            let values = array.as_slice().context("tensor is not in standard layout")?;
            Ok((name, TensorView::new(Dtype::F32, array.shape().to_vec(), bytemuck::cast_slice(values))?))
        });
        let views = views.collect::<anyhow::Result<Vec<_>>>()?;
        let metadata = HashMap::from([(RUN_STATE_KEY.to_owned(), serde_json::to_string(state)?)]);
        let bytes = safetensors::serialize(views, Some(metadata))?;
        Ok(write_atomically(&self.state_path(), |file| file.write_all(&bytes))?)
    }

    /// The saved run: the text of its configuration, and its state.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(crate) fn saved(&self) -> anyhow::Result<(String, RunState)> {
        let (config, state) = (self.config_path(), self.state_path());
        let text = fs::read_to_string(&config).with_context(|| format!("cannot read `{}`", config.display()))?;
        let state = read_run_state(&state).with_context(|| format!("cannot resume from `{}`", state.display()))?;
        Ok((text, state))
    }

    /// See [`checked_images`].
    pub(crate) fn checked_images(&self) -> HashSet<u64> {
        checked_images(&self.path)
    }

    /// Restores the tensors of `model` at the last [`save`](Self::save).
    ///
    /// # Errors
    /// When the state cannot be read, or when its tensors do not match those of `model`.
    pub(crate) fn restore(&self, model: &mut TrainingModel) -> anyhow::Result<()> {
        let path = self.state_path();
        let restore = |model: &mut TrainingModel| {
            let bytes = fs::read(&path)?;
            let file = SafeTensors::deserialize(&bytes)?;
            for (name, mut tensor) in model.state() {
                let view = file.tensor(name).with_context(|| format!("cannot read tensor `{name}`"))?;
                ensure!(
                    view.dtype() == Dtype::F32 && view.shape() == [tensor.numel()],
                    "tensor `{name}` has shape {:?}, expected [{}]",
                    view.shape(),
                    tensor.numel()
                );
                let values: Vec<f32> = bytemuck::pod_collect_to_vec(view.data());
                tch::no_grad(|| tensor.copy_(&tch::Tensor::from_slice(&values)));
            }
            Ok(())
        };
        restore(model).with_context(|| format!("cannot resume from `{}`", path.display()))
    }

    /// Replaces the link `runs/latest` atomically.
    fn update_latest_link(&self) -> anyhow::Result<()> {
        let name = self.path.file_name().context("the run folder has no name")?;
        // Other runs may begin at the same time.
        let next = Path::new(RUNS).join(format!(".latest.{}", std::process::id()));
        let latest = Path::new(RUNS).join("latest");
        let linked = symlink(name, &next).and_then(|()| fs::rename(&next, &latest));
        linked.with_context(|| format!("cannot link `{}` to `{}`", latest.display(), self.path.display()))
    }
}

/// The folder that `path` links to if it is a link like `runs/latest`, which another run may move at any time; else `path`.
pub(crate) fn linked(path: &Path) -> PathBuf {
    // Without a slash at the end, which would already be inside of the linked folder.
    let path: PathBuf = path.components().collect();
    fs::read_link(&path).map_or_else(|_| path.clone(), |target| path.with_file_name(target))
}

/// Fingerprints of image files that the run in a folder, or another one beside it, could read.
pub(crate) fn checked_images(run: &Path) -> HashSet<u64> {
    let parent = run.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let beside = fs::read_dir(parent).into_iter().flatten().flatten().map(|entry| entry.path());
    let states = beside.chain([run.to_owned()]).map(|run| run.join(STATE));
    // Other files and those of other versions tell nothing.
    let runs = states.filter_map(|state| read_run_state(&state).ok());
    runs.flat_map(|state| state.checked_images).flatten().collect()
}

/// The state of a run in its file.
fn read_run_state(path: &Path) -> anyhow::Result<RunState> {
    #[derive(Deserialize)]
    struct Header {
        #[serde(rename = "__metadata__")]
        metadata: HashMap<String, String>,
    }
    let mut file = BufReader::new(File::open(path)?);
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let Header { metadata } = serde_json::from_reader(file.take(u64::from_le_bytes(length)))?;
    let state = metadata.get(RUN_STATE_KEY).context("its metadata has no state of a run")?;
    serde_json::from_str(state).context("it is of another version; start a new run from its weights with --weights")
}

/// The folder is locked by another process.
#[derive(Debug, thiserror::Error)]
#[error("`{}` is in use by another run, process {process}; pass another --out, or wait until it ends", path.display())]
struct InUse {
    path: PathBuf,
    process: String,
}

/// Whether a folder contains nothing but a lock file.
fn is_unused(folder: &Path) -> bool {
    fs::read_dir(folder)
        .is_ok_and(|mut entries| entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == LOCK)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::env;
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// Environment variable with the `--out` of a child process of these tests; empty for none.
    const OUT: &str = "RUN_FOLDER_OUT";

    /// Not a test, but the program of the child processes: creates a run folder, prints the result, and keeps the
    /// folder locked until its stdin is closed.
    #[test]
    fn claim() {
        let Ok(out) = env::var(OUT) else { return };
        let out = (!out.is_empty()).then(|| PathBuf::from(out));
        let folder = RunFolder::create(out.as_deref(), "crowd");
        match &folder {
            Ok(folder) => println!("\nclaim: {}", folder.path.display()),
            Err(error) => println!("\nclaim: error: {error:#}"),
        }
        let _ = std::io::stdin().read_line(&mut String::new());
    }

    /// The output of `count` processes that create a run folder at the same time. Each keeps its lock until all have
    /// printed.
    fn claims(folder: &Path, out: &str, count: usize) -> Vec<String> {
        let claim = || {
            let mut command = Command::new(env::current_exe().unwrap());
            command.args(["--exact", "run::folder::tests::claim", "--nocapture"]).env(OUT, out).current_dir(folder);
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
        };
        let mut processes: Vec<Child> = (0..count).map(|_| claim()).collect();
        let result = |process: &mut Child| {
            let lines = BufReader::new(process.stdout.take().unwrap()).lines().map_while(Result::ok);
            lines.into_iter().find_map(|line| Some(line.strip_prefix("claim: ")?.to_owned())).unwrap()
        };
        let claims = processes.iter_mut().map(result).collect();
        for mut process in processes {
            drop(process.stdin.take());
            let _ = process.wait();
        }
        claims
    }

    #[test]
    fn the_folder_of_a_run_is_not_the_link_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("shapes-1");
        fs::create_dir(&run).unwrap();
        symlink("shapes-1", folder.path().join("latest")).unwrap();
        assert_eq!(RunFolder::of_run(Some(&run)), None);
        fs::write(run.join(CONFIG), "").unwrap();
        for name in ["shapes-1", "latest", "latest/", "./latest"] {
            assert_eq!(RunFolder::of_run(Some(&folder.path().join(name))), Some(run.clone()), "{name}");
        }
        symlink(&run, folder.path().join("elsewhere")).unwrap();
        assert_eq!(RunFolder::of_run(Some(&folder.path().join("elsewhere"))), Some(run));
    }

    #[test]
    fn states_of_other_versions_are_refused_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let metadata = HashMap::from([(RUN_STATE_KEY.to_owned(), r#"{"steps": 3, "epochs": 1}"#.to_owned())]);
        let bytes = safetensors::serialize(Vec::<(String, TensorView)>::new(), Some(metadata)).unwrap();
        fs::write(folder.path().join(STATE), bytes).unwrap();
        let error = read_run_state(&folder.path().join(STATE)).unwrap_err().to_string();
        assert_eq!(error, "it is of another version; start a new run from its weights with --weights");
        assert!(checked_images(folder.path()).is_empty());
    }

    #[test]
    fn concurrent_runs_get_separate_folders() {
        let folder = tempfile::tempdir().unwrap();
        let owned: BTreeSet<_> = claims(folder.path(), "", 50).into_iter().collect();
        assert_eq!(owned, (1..=50).map(|number| format!("runs/crowd-{number}")).collect());
        // None of them began a run, so the first folder is free again.
        assert_eq!(claims(folder.path(), "", 1), ["runs/crowd-1"]);
    }

    #[test]
    fn concurrent_runs_with_the_same_out_are_refused_except_one() {
        let folder = tempfile::tempdir().unwrap();
        let claims = claims(folder.path(), "mine", 50);
        let (owners, refused): (Vec<_>, Vec<_>) = claims.into_iter().partition(|claim| claim == "mine");
        assert_eq!(owners.len(), 1);
        assert!(
            refused.iter().all(|claim| claim.starts_with("error: `mine` is in use by another run, process ")),
            "{refused:?}"
        );
    }
}
