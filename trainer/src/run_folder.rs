//! The folder of a training run, and what of it lets the run go on.

use std::collections::HashMap;
use std::fs::{self, File, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use models::{Checkpoint, write_atomically};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use crate::config::TrainConfig;
use crate::device::Device;
use crate::learner::Learner;
use crate::parameters::to_array;
use crate::progress::say;
use crate::schedule::Patience;

/// Key of [`Progress`] in the state file's metadata.
const PROGRESS_KEY: &str = "progress";

/// Where runs go that are not told where to go.
const RUNS: &str = "runs";

/// The file that makes a folder that of a run.
const CONFIG: &str = "config.yaml";

/// What a run holds locked in its folder, with the number of its process in it. It stays when the run ends, so that no two
/// processes can hold two files of this name; the lock does not.
const LOCK: &str = ".lock";

/// The folder of one run, which no other process can have meanwhile.
#[derive(Debug)]
pub(crate) struct RunFolder {
    path: PathBuf,
    /// Locked until it is closed, which a process cannot end without.
    _lock: File,
}

/// How far a run has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Checksums of the data to learn from and to validate on.
    pub(crate) data: [u32; 2],
    /// Where the last step was made.
    #[serde(default)]
    pub(crate) device: Device,
    /// Steps made.
    pub(crate) steps: u64,
    /// Epochs finished, which includes their validation.
    pub(crate) epochs: u32,
    /// Best average precision of a validation; none before the first.
    pub(crate) best_ap: Option<f64>,
    /// Average precision of the last validation; none before the first.
    pub(crate) last_ap: Option<f64>,
    /// What the validations have brought.
    pub(crate) patience: Patience,
    /// Sums over the images of the epoch under way: classification loss, box loss.
    pub(crate) losses: [f64; 2],
}

impl RunFolder {
    /// Makes the folder of a new run: `out`, or the next free `runs/NAME-N`. Everything that can be wrong with it is found
    /// here, before the work; it holds a run only once that [begins](Self::begin).
    ///
    /// # Errors
    /// When the folder holds a run already, is another process's, or can't be written.
    pub(crate) fn create(out: Option<&Path>, name: &str) -> anyhow::Result<Self> {
        let claim = |path: PathBuf| {
            fs::create_dir_all(&path).with_context(|| format!("can't make the folder {}", path.display()))?;
            Self::lock(path)
        };
        if let Some(out) = out {
            let folder = claim(out.to_owned())?;
            folder.check_is_new()?;
            return Ok(folder);
        }
        for number in 1.. {
            let path = Path::new(RUNS).join(format!("{name}-{number}"));
            // Whoever comes at the same time may be faster, until the folder is locked.
            if path.exists() && !is_unused(&path) {
                continue;
            }
            match claim(path) {
                Ok(folder) if is_unused(&folder.path) => return Ok(folder),
                Err(error) if !error.is::<InUse>() => return Err(error),
                _ => {}
            }
        }
        bail!("no free number for a run")
    }

    /// Takes a folder for this process.
    fn lock(path: PathBuf) -> anyhow::Result<Self> {
        let place = || format!("can't write into {}", path.display());
        let file = path.join(LOCK);
        let mut lock =
            File::options().create(true).truncate(false).read(true).write(true).open(&file).with_context(place)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut process = String::new();
                let _ = lock.read_to_string(&mut process);
                return Err(InUse { path, process: process.trim().to_owned() }.into());
            }
            Err(TryLockError::Error(error)) => say(&format!(
                "warning: {} has no locks ({error}): take care that no other run writes into it",
                path.display()
            )),
        }
        // For the message of whoever comes next; the lock itself does not need it.
        let written = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
        written.with_context(place)?;
        Ok(Self { path, _lock: lock })
    }

    fn check_is_new(&self) -> anyhow::Result<()> {
        ensure!(
            !self.config_path().exists(),
            "{} holds a run already; give another --out, or go on with it by --resume",
            self.path.display()
        );
        Ok(())
    }

    /// The folder of a run that goes on: `out`, or `runs/latest`.
    ///
    /// # Errors
    /// When there is no run, or the folder can't be written.
    pub(crate) fn existing(out: Option<&Path>) -> anyhow::Result<Self> {
        let path = out.map_or_else(|| Path::new(RUNS).join("latest"), Path::to_owned);
        ensure!(
            path.join(CONFIG).exists(),
            "{} holds no run that could go on; start one without --resume",
            path.display()
        );
        let folder = Self::lock(path)?;
        folder.remove_unfinished()?;
        Ok(folder)
    }

    /// Removes what a run that was killed while it saved has left.
    fn remove_unfinished(&self) -> anyhow::Result<()> {
        let place = || format!("can't tidy up {}", self.path.display());
        for entry in fs::read_dir(&self.path).with_context(place)? {
            let path = entry.with_context(place)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with('.') && name.ends_with(".partial") {
                fs::remove_file(&path).with_context(|| format!("can't remove {}", path.display()))?;
            }
        }
        Ok(())
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The run's configuration, every value written out.
    pub(crate) fn config_path(&self) -> PathBuf {
        self.path.join(CONFIG)
    }

    /// The weights with the best average precision.
    pub(crate) fn best_path(&self) -> PathBuf {
        self.path.join("best.safetensors")
    }

    /// The newest weights.
    pub(crate) fn last_path(&self) -> PathBuf {
        self.path.join("last.safetensors")
    }

    fn state_path(&self) -> PathBuf {
        self.path.join("state.safetensors")
    }

    /// Keeps the configuration, which makes this the folder of a run, and points `runs/latest` to it if it is there. To be
    /// called after the first [`save`](Self::save), so that every run can go on.
    ///
    /// # Errors
    /// When it can't be written.
    pub(crate) fn begin(&self, config: &TrainConfig) -> anyhow::Result<()> {
        let text = serde_yaml::to_string(config)?;
        write_atomically(&self.config_path(), |file| file.write_all(text.as_bytes()))
            .with_context(|| format!("can't write {}", self.config_path().display()))?;
        if self.path.parent() == Some(Path::new(RUNS)) { self.point_latest_here() } else { Ok(()) }
    }

    /// Keeps the newest weights and all that the next step needs, and the weights as the best ones too if they are.
    ///
    /// # Errors
    /// When a file can't be written; the earlier one is then untouched.
    pub(crate) fn save(
        &self,
        learner: &Learner,
        progress: &Progress,
        checkpoint: &Checkpoint,
        best: bool,
    ) -> anyhow::Result<()> {
        if best {
            checkpoint.write(&self.best_path())?;
        }
        checkpoint.write(&self.last_path())?;
        let path = self.state_path();
        self.write_state(learner, progress).with_context(|| format!("can't write {}", path.display()))
    }

    fn write_state(&self, learner: &Learner, progress: &Progress) -> anyhow::Result<()> {
        let arrays: Vec<_> = named_state(learner).into_iter().map(|(name, tensor)| (name, to_array(&tensor))).collect();
        let views = arrays.iter().map(|(name, array)| {
            let values = array.as_slice().context("a copied tensor is in standard layout")?;
            Ok((name, TensorView::new(Dtype::F32, array.shape().to_vec(), bytemuck::cast_slice(values))?))
        });
        let views = views.collect::<anyhow::Result<Vec<_>>>()?;
        let metadata = HashMap::from([(PROGRESS_KEY.to_owned(), serde_json::to_string(progress)?)]);
        let bytes = safetensors::serialize(views, Some(metadata))?;
        Ok(write_atomically(&self.state_path(), |file| file.write_all(&bytes))?)
    }

    /// How far the run has come.
    ///
    /// # Errors
    /// When the state can't be read.
    pub(crate) fn progress(&self) -> anyhow::Result<Progress> {
        #[derive(Deserialize)]
        struct Header {
            #[serde(rename = "__metadata__")]
            metadata: HashMap<String, String>,
        }
        let path = self.state_path();
        let read = || -> anyhow::Result<Progress> {
            let mut file = File::open(&path)?;
            let mut length = [0; 8];
            file.read_exact(&mut length)?;
            let Header { metadata } = serde_json::from_reader(file.take(u64::from_le_bytes(length)))?;
            Ok(serde_json::from_str(metadata.get(PROGRESS_KEY).context("it says nothing about progress")?)?)
        };
        read().with_context(|| format!("can't go on from {}", path.display()))
    }

    /// Brings `learner` to where [`save`](Self::save) left it.
    ///
    /// # Errors
    /// When the state can't be read or is not that of such a learner.
    pub(crate) fn restore(&self, learner: &mut Learner) -> anyhow::Result<Progress> {
        let path = self.state_path();
        let restore = |learner: &mut Learner| {
            let progress = self.progress()?;
            let bytes = fs::read(&path)?;
            let file = SafeTensors::deserialize(&bytes)?;
            for (name, mut tensor) in named_state(learner) {
                let view = file.tensor(name).with_context(|| format!("tensor `{name}`"))?;
                ensure!(
                    view.dtype() == Dtype::F32 && view.shape() == [tensor.numel()],
                    "tensor `{name}` has shape {:?}, expected [{}]",
                    view.shape(),
                    tensor.numel()
                );
                let values: Vec<f32> = bytemuck::pod_collect_to_vec(view.data());
                tch::no_grad(|| tensor.copy_(&tch::Tensor::from_slice(&values)));
            }
            learner.optimizer.steps = progress.steps as i64;
            Ok(progress)
        };
        restore(learner).with_context(|| format!("can't go on from {}", path.display()))
    }

    /// Replaces the link in one go, so that `runs/latest` always leads somewhere.
    fn point_latest_here(&self) -> anyhow::Result<()> {
        let name = self.path.file_name().context("a run's folder has a name")?;
        let (latest, next) = (Path::new(RUNS).join("latest"), Path::new(RUNS).join(".latest"));
        let linked = fs::remove_file(&next)
            .or_else(|error| if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
            .and_then(|()| symlink(name, &next))
            .and_then(|()| fs::rename(&next, &latest));
        linked.with_context(|| format!("can't point {} to {}", latest.display(), self.path.display()))
    }
}

/// Another process has the folder.
#[derive(Debug, thiserror::Error)]
#[error("{} is in use by another run, process {process}; give another --out, or wait for its end", path.display())]
struct InUse {
    path: PathBuf,
    process: String,
}

/// Whether nothing is in a folder but a lock.
fn is_unused(folder: &Path) -> bool {
    fs::read_dir(folder)
        .is_ok_and(|mut entries| entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == LOCK)))
}

/// The flat tensors that a learner changes, by name. They share memory with the learner's.
fn named_state(learner: &Learner) -> Vec<(&'static str, tch::Tensor)> {
    let Learner { parameters, average, optimizer, .. } = learner;
    let mut state = vec![("trainable", &parameters.trainable), ("buffers", &parameters.buffers)];
    if let Some(average) = average {
        state.extend([
            ("average_trainable", &average.parameters.trainable),
            ("average_buffers", &average.parameters.buffers),
        ]);
    }
    state.extend(optimizer.moment_names().iter().copied().zip(&optimizer.moments));
    state.into_iter().map(|(name, tensor)| (name, tensor.shallow_clone())).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::env;
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// Says to a process that it is one of the many, and which `--out` it has.
    const OUT: &str = "RUN_FOLDER_OUT";

    /// Not a test of its own, but what each of many processes does: it claims a folder, says how that went, and holds it until
    /// its stdin ends.
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

    /// What so many processes say that claim a folder at once; each holds it until all have spoken.
    fn claims(folder: &Path, out: &str, count: usize) -> Vec<String> {
        let claim = || {
            let mut command = Command::new(env::current_exe().unwrap());
            command.args(["--exact", "run_folder::tests::claim", "--nocapture"]).env(OUT, out).current_dir(folder);
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
        };
        let mut processes: Vec<Child> = (0..count).map(|_| claim()).collect();
        let said = |process: &mut Child| {
            let lines = BufReader::new(process.stdout.take().unwrap()).lines().map_while(Result::ok);
            lines.into_iter().find_map(|line| Some(line.strip_prefix("claim: ")?.to_owned())).unwrap()
        };
        let claims = processes.iter_mut().map(said).collect();
        for mut process in processes {
            drop(process.stdin.take());
            let _ = process.wait();
        }
        claims
    }

    #[test]
    fn fifty_processes_at_once_own_fifty_folders() {
        let folder = tempfile::tempdir().unwrap();
        let owned: BTreeSet<_> = claims(folder.path(), "", 50).into_iter().collect();
        assert_eq!(owned, (1..=50).map(|number| format!("runs/crowd-{number}")).collect());
        // None of them began a run, so that the first is free again.
        assert_eq!(claims(folder.path(), "", 1), ["runs/crowd-1"]);
    }

    #[test]
    fn of_fifty_processes_with_one_folder_one_owns_it_and_the_others_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let claims = claims(folder.path(), "mine", 50);
        let (owners, told): (Vec<_>, Vec<_>) = claims.into_iter().partition(|claim| claim == "mine");
        assert_eq!(owners.len(), 1);
        assert!(
            told.iter().all(|claim| claim.starts_with("error: mine is in use by another run, process ")),
            "{told:?}"
        );
    }
}
