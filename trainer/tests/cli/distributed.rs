//! Training with several processes, started as a launcher starts them: each with its rank in the environment.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ndarray::ArrayD;
use rand::{RngExt, rng};

use crate::project::{Project, command};

/// Seconds that the processes wait for each other.
const GROUP_TIMEOUT: &str = "10";

/// Longest time from the cause of an error until all processes have ended.
const LIMIT: Duration = Duration::from_secs(40);

/// Batches of 4 images, 5 of them in an epoch.
const CONFIG: &str = "
data:
  train: {annotations: shapes/train.json, images: shapes/train}
  validation: {annotations: shapes/val.json, images: shapes/val}
augmentation: {horizontal_flip: 0.0}
schedule: {warmup_steps: 0}
run: {epochs: 2, batch_size: 4, workers: 2, validate_every: 2, save_every_minutes: 0.0001}
model:
  backbone: {depth: 50, width_per_group: 4, norm: {kind: group, groups: 4}}
  pyramid: {width: 16}
  heads: {width: 16, depth: 1}
  preprocessing: {shorter_side: 64, longer_side: 64}
";

/// For comparisons up to rounding, whose differences grow with the depth of the network.
const RESNET18_GROUP: &str = "model.backbone={depth: 18, norm: {kind: group}}";
const RESNET18_BATCH: &str = "model.backbone={depth: 18, norm: {kind: batch}}";

/// Saves at the end of an epoch only.
const FEW_SAVES: [&str; 2] = ["--set", "run.save_every_minutes=10"];

/// AdamW divides gradients by their size, and so makes differences of rounding as large as any.
const SGD: [&str; 2] = ["--set", "optimizer.kind=sgd"];

fn drawn(train_images: &str) -> Project {
    Project::drawn(train_images, "5", CONFIG)
}

impl Project {
    /// Trains with `world_size` processes, which must succeed.
    fn fit_together(&self, world_size: usize, arguments: &[&str]) {
        let ended = Ranks::start(self.path(), world_size, arguments).ended();
        assert!(ended.iter().all(|ended| ended.status.success()), "{ended:#?}");
    }

    fn weights(&self, run: &str) -> BTreeMap<String, ArrayD<f32>> {
        self.checkpoint(&format!("{run}/last.safetensors")).tensors
    }

    /// The number of steps in a run's log, if there is one.
    fn steps(&self, run: &str) -> usize {
        let log = fs::read_to_string(self.path().join(run).join("log.jsonl")).unwrap_or_default();
        log.lines().filter(|line| line.contains("\"step\"")).count()
    }

    /// Waits until a run has made `steps` steps.
    fn wait_for_steps(&self, run: &str, steps: usize) {
        let start = Instant::now();
        while self.steps(run) < steps {
            assert!(start.elapsed() < LIMIT, "the run makes no steps");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The processes of a group. They end with the test.
struct Ranks(Vec<Child>);

/// A process that has ended.
#[derive(Debug)]
struct Ended {
    status: ExitStatus,
    stderr: String,
}

impl Drop for Ranks {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Ranks {
    fn start(folder: &Path, world_size: usize, arguments: &[&str]) -> Self {
        Self::start_with(world_size, |_| command(folder, &[&["fit"], arguments].concat()))
    }

    /// The command of each rank comes from `command`.
    fn start_with(world_size: usize, command: impl Fn(usize) -> Command) -> Self {
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port().to_string();
        let start = |rank: usize| {
            let [rank_text, world_size] = [rank, world_size].map(|number| number.to_string());
            let variables = [
                ("RANK", &rank_text),
                ("LOCAL_RANK", &rank_text),
                ("WORLD_SIZE", &world_size),
                ("LOCAL_WORLD_SIZE", &world_size),
                ("MASTER_PORT", &port),
            ];
            let mut command = command(rank);
            command.args(["--group-timeout", GROUP_TIMEOUT]).envs(variables);
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        };
        Self((0..world_size).map(start).collect())
    }

    fn signal(&self, rank: usize, signal: &str) {
        let id = self.0[rank].id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    /// Waits until all processes have ended; those that `except` names are killed when the others have.
    fn ended_except(mut self, except: Option<usize>) -> Vec<Ended> {
        let start = Instant::now();
        let mut status = vec![None; self.0.len()];
        while status.iter().enumerate().any(|(rank, status)| status.is_none() && Some(rank) != except) {
            for (child, status) in self.0.iter_mut().zip(&mut status) {
                *status = status.or(child.try_wait().unwrap());
            }
            assert!(start.elapsed() < 2 * LIMIT, "processes hang: {status:?}");
            thread::sleep(Duration::from_millis(10));
        }
        std::mem::take(&mut self.0)
            .into_iter()
            .map(|mut child| {
                let _ = child.kill();
                let status = child.wait().unwrap();
                let mut stderr = String::new();
                child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
                Ended { status, stderr }
            })
            .collect()
    }

    fn ended(self) -> Vec<Ended> {
        self.ended_except(None)
    }
}

/// The largest difference of two networks' weights, relative to the largest weight of the tensor.
fn distance(a: &BTreeMap<String, ArrayD<f32>>, b: &BTreeMap<String, ArrayD<f32>>) -> f32 {
    let max = |values: &mut dyn Iterator<Item = f32>| values.fold(0.0, f32::max);
    let distances = a.iter().map(|(name, a)| {
        let difference = max(&mut a.iter().zip(&b[name]).map(|(a, b)| (a - b).abs()));
        difference / max(&mut a.iter().map(|value| value.abs())).max(1e-3)
    });
    distances.fold(0.0, f32::max)
}

/// All ranks scale the loss alike, and skip the same steps.
#[test]
fn two_processes_in_float16_are_one_with_two_accumulated_batches_bit_for_bit() {
    let project = drawn("16");
    let common = [&SGD[..], &FEW_SAVES, &["--set", "run.precision=float16"]].concat();
    project.fit_together(2, &[&common[..], &["--out", "two"]].concat());
    let accumulated = ["--set", "optimizer.gradient_accumulation_steps=2", "--out", "one"];
    project.fitted(&[&common[..], &accumulated].concat());
    assert_eq!(project.weights("two"), project.weights("one"));
    let scales = |run: &str| {
        let log = project.read(&format!("{run}/log.jsonl"));
        let steps = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        steps.filter_map(|record| record["loss_scale"].as_f64()).collect::<Vec<_>>()
    };
    assert!(scales("two").len() == 4 && scales("two") == scales("one"), "{:?}", scales("two"));
}

#[test]
fn two_processes_are_one_with_two_accumulated_batches_bit_for_bit() {
    let project = drawn("16");
    // Ten epochs of two steps.
    let length = ["--set", "run.epochs=10", "--set", "run.validate_every=5"];
    // At 0.001, differences of rounding grow to 3e-4 in these steps, at 0.01 to 0.1.
    let network = ["--set", "optimizer.learning_rate=0.0001", "--set", RESNET18_GROUP];
    let common = [&SGD[..], &FEW_SAVES, &network, &length].concat();
    project.fit_together(2, &[&common[..], &["--out", "two"]].concat());
    let accumulated = ["--set", "optimizer.gradient_accumulation_steps=2", "--out", "one"];
    project.fitted(&[&common[..], &accumulated].concat());
    assert_eq!(project.steps("two"), 20);
    assert!(project.weights("one") == project.weights("two"));
    assert_eq!(project.validations("one"), project.validations("two"));
    assert_eq!(project.validations("two").len(), 2);

    project.fitted(&[&common[..], &["--set", "run.batch_size=8", "--out", "large"]].concat());
    let distance = distance(&project.weights("one"), &project.weights("large"));
    assert!(distance < 1e-5, "{distance}");
}

#[test]
fn any_number_of_processes_is_repeatable() {
    // Five batches: with three processes, the second step has a rank without a batch; with four, three such ranks.
    let project = drawn("18");
    let batch_norm = ["--set", "model.backbone.norm.kind=batch"];
    for world_size in ["3", "4"] {
        for run in ["a", "b"] {
            // The program checks after every epoch that all ranks have the same weights.
            let out = format!("{run}{world_size}");
            project
                .fit_together(world_size.parse().unwrap(), &[&batch_norm[..], &FEW_SAVES, &["--out", &out]].concat());
        }
        let [a, b] = ["a", "b"].map(|run| project.weights(&format!("{run}{world_size}")));
        assert!(a == b, "{world_size}");
    }
    assert!(project.weights("a3") != project.weights("a4"));
}

#[test]
fn synchronized_norms_are_those_of_one_large_batch() {
    // One epoch, because training amplifies differences of rounding. Its second step has four images: one rank has none.
    let project = drawn("12");
    let one_epoch = ["--set", "optimizer.learning_rate=0.01", "--set", "run.epochs=1"];
    let batch_norm = [&SGD[..], &FEW_SAVES, &["--set", RESNET18_BATCH], &one_epoch].concat();
    project.fitted(&[&batch_norm[..], &["--set", "run.batch_size=8", "--out", "one"]].concat());
    project.fit_together(2, &[&batch_norm[..], &["--set", "run.sync_batch_norm=true", "--out", "two"]].concat());
    project.fit_together(2, &[&batch_norm[..], &["--out", "separate"]].concat());
    let expected = project.weights("one");
    let [synchronized, separate] = ["two", "separate"].map(|run| distance(&expected, &project.weights(run)));
    assert!(synchronized < 1e-4 && separate > 0.01, "{synchronized} {separate}");
}

#[test]
fn killed_ranks_are_relaunched_to_the_same_weights() {
    fn arguments(out: &str) -> [&str; 7] {
        ["--set", "model.backbone.norm.kind=batch", "--set", "run.epochs=4", "--resume", "--out", out]
    }
    let project = drawn("20");
    project.fit_together(2, &arguments("undisturbed"));
    for victim in [0, 1] {
        let out = format!("killed{victim}");
        for steps in [rng().random_range(1..5), rng().random_range(5..10)] {
            let ranks = Ranks::start(project.path(), 2, &arguments(&out));
            project.wait_for_steps(&out, steps);
            ranks.signal(victim, "-KILL");
            let ended = ranks.ended();
            let other = &ended[1 - victim];
            assert_eq!(other.status.code(), Some(1), "{ended:#?}");
            assert!(other.stderr.contains(&format!("rank {victim} has ended or does not respond")), "{ended:#?}");
        }
        project.fit_together(2, &arguments(&out));
        assert!(project.weights(&out) == project.weights("undisturbed"), "{victim}");
    }
}

#[test]
fn a_signal_to_one_rank_stops_and_saves_all() {
    // Ten steps in an epoch.
    let project = drawn("80");
    let arguments = ["--resume", "--out", "run"];
    let ranks = Ranks::start(project.path(), 2, &arguments);
    project.wait_for_steps("run", 2);
    ranks.signal(1, "-TERM");
    let ended = ranks.ended();
    for Ended { status, stderr } in &ended {
        assert_eq!(status.code(), Some(130), "{ended:#?}");
        assert!(stderr.contains("interrupted; saved after step"), "{ended:#?}");
    }
    assert!(ended[0].stderr.contains("global batch 8: 2 processes, 1 batch of 4 images each"), "{ended:#?}");
    // The epoch has another number of steps with one process.
    let alone = command(project.path(), &[&["fit"], &arguments[..]].concat()).output().unwrap();
    assert!(String::from_utf8_lossy(&alone.stderr).contains("by 2 processes and cannot go on with 1"), "{alone:?}");
    project.fit_together(2, &arguments);
    // Between epochs, any number of processes can go on.
    project.fitted(&["--resume", "--out", "run", "--set", "run.epochs=3"]);
    project.fit_together(2, &["--out", "undisturbed"]);
    project.fitted(&["--resume", "--out", "undisturbed", "--set", "run.epochs=3"]);
    assert!(project.weights("run") == project.weights("undisturbed"));
}

#[test]
fn a_frozen_rank_is_named_within_the_timeout() {
    let project = drawn("20");
    let ranks = Ranks::start(project.path(), 2, &["--set", "run.epochs=1000", "--out", "run"]);
    project.wait_for_steps("run", 2);
    ranks.signal(1, "-STOP");
    let start = Instant::now();
    let ended = ranks.ended_except(Some(1));
    assert!(start.elapsed() < LIMIT);
    let Ended { status, stderr } = &ended[0];
    assert_eq!(status.code(), Some(1));
    assert!(stderr.contains("rank 1 has ended or does not respond"), "{ended:#?}");
    assert!(stderr.contains("saved after step") && stderr.contains("trainer fit --resume --out run"), "{ended:#?}");
}

#[test]
fn ranks_with_another_configuration_or_other_data_are_refused() {
    let project = drawn("8");
    let changed = drawn("9");
    for (folder, set, message) in [
        (&project, "run.seed=1", "`run.seed` differs from rank 0"),
        (&project, "run.workers=1", ""),
        (&changed, "run.seed=0", "the training data differs from that of rank 0"),
    ] {
        let ranks = Ranks::start_with(2, |rank| match rank {
            0 => command(project.path(), &["fit", "--out", "run"]),
            _ => command(folder.path(), &["fit", "--set", set, "--out", "run"]),
        });
        let ended = ranks.ended();
        if message.is_empty() {
            assert!(ended.iter().all(|ended| ended.status.success()), "{ended:#?}");
            fs::remove_dir_all(project.path().join("run")).unwrap();
        } else {
            assert!(
                ended[0].stderr.contains("rank 0: rank 1 has failed: ") && ended[0].stderr.contains(message),
                "{ended:#?}"
            );
            assert!(ended[1].stderr.contains(&format!("rank 1: {message}")), "{ended:#?}");
            assert!(ended.iter().all(|ended| ended.status.code() == Some(1)));
        }
    }
}

#[test]
fn an_image_that_one_rank_cannot_read_stops_all() {
    let project = drawn("8");
    for image in fs::read_dir(project.path().join("shapes/train")).unwrap().take(1) {
        let path = image.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    }
    let ended = Ranks::start(project.path(), 2, &["--out", "run"]).ended();
    assert!(ended.iter().all(|ended| ended.status.code() == Some(1)), "{ended:#?}");
    assert!(ended.iter().any(|ended| ended.stderr.contains("has failed and says why")), "{ended:#?}");
    assert!(ended[0].stderr.contains("saved after step 0"), "{ended:#?}");
}

#[test]
fn files_that_rank_0_cannot_write_stop_all() {
    let project = drawn("40");
    // After a step, an epoch, and a validation within an epoch.
    for (minutes, interval) in [("0.0001", "1000"), ("null", "1000"), ("null", "2 steps")] {
        let set = [("epochs", "1000"), ("save_every_minutes", minutes), ("validate_every", interval)];
        let set = set.map(|(key, value)| format!("--set=run.{key}={value}"));
        let ranks = Ranks::start(project.path(), 2, &[&set[0], &set[1], &set[2], "--out", "run"]);
        project.wait_for_steps("run", 1);
        fs::rename(project.path().join("run"), project.path().join("moved")).unwrap();
        let ended = ranks.ended();
        assert!(ended.iter().all(|ended| ended.status.code() == Some(1)), "{set:?}: {ended:#?}");
        let [first, second] = [&ended[0].stderr, &ended[1].stderr];
        assert!(
            first.contains("No such file") && first.contains("to resume from the last save"),
            "{set:?}: {ended:#?}"
        );
        assert!(second.contains("rank 0 has failed"), "{set:?}: {ended:#?}");
        fs::remove_dir_all(project.path().join("moved")).unwrap();
    }
}

#[test]
fn bench_reports_communication_and_efficiency() {
    let project = drawn("2");
    let arguments = ["bench", "--steps", "2", "--width", "64", "--height", "64", "--json", "bench.json"];
    let ended = Ranks::start_with(2, |_| command(project.path(), &arguments)).ended();
    assert!(ended.iter().all(|ended| ended.status.success()), "{ended:#?}");
    let measured = project.json("bench.json");
    assert_eq!((measured["world_size"].as_u64(), measured["batch_size"].as_u64()), (Some(2), Some(8)));
    let communication = |key: &str| measured["communication"][key].as_f64().unwrap();
    assert!((0.0..1.0).contains(&communication("fraction")) && communication("efficiency") > 0.0, "{measured}");
}
