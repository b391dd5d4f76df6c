//! The program `exporter`, on checkpoints with random weights.
//!
//! What libtorch would have said of the probe comes from ONNX Runtime itself here, so that these tests run without
//! libtorch. That both agree is shown in the workspace's `tests`.
#![allow(clippy::unwrap_used, reason = "a failed test may panic, and its helpers stand outside of test functions")]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::LazyLock;

use exporter::to_onnx;
use models::spec::{NormKind, NormSpec};
use models::{Checkpoint, Initial, ModelSpec, Parameter, Probe, Provenance, parameters};
use ndarray::{Array3, Array4, ArrayD, IxDyn};
use runtime::{Engine, EngineOptions};

#[test]
fn an_exported_file_runs_at_every_size_and_carries_its_spec() {
    let folder = Folder::with(checkpoint());
    let printed = success(folder.exporter(&["--out", "model.onnx"]));
    // 11,176,512 of the trunk (torchvision resnet18 less its 513,000 of `fc`), 213,248 of the pyramid, 89,590 of the heads.
    for line in ["model.onnx", "parameters   11,479,350", "GFLOPs at 608x1024", "MB", "allowed 1e-4"] {
        assert!(printed.contains(line), "no `{line}` in {printed}");
    }
    assert_eq!(folder.files(), ["model.onnx", "runs"]);

    let engine = Engine::open(folder.path("model.onnx"), &EngineOptions::default()).unwrap();
    assert_eq!(*engine.spec(), checkpoint().spec);
    for (pictures, height, width) in [(1, 32, 32), (3, 64, 96), (2, 160, 32)] {
        let images = noise(&mut Random(7), &[pictures, 3, height, width], 1.0);
        let outputs = engine.run(images.into_dimensionality().unwrap().view()).unwrap();
        let (scores, offsets) = (outputs.scores(), outputs.offsets());
        let cells: usize = (3..8).map(|level| height.div_ceil(1 << level) * width.div_ceil(1 << level)).sum();
        assert_eq!(scores.dim(), (pictures, cells * 9, 2));
        assert_eq!(offsets.dim(), (pictures, cells * 9, 4));
        assert!(scores.iter().all(|score| *score > 0.0 && *score < 1.0));
    }
}

#[test]
fn without_arguments_the_latest_best_checkpoint_becomes_retinanet_onnx() {
    let folder = Folder::with(checkpoint());
    success(folder.exporter(&[]));
    let first = fs::read(folder.path("retinanet.onnx")).unwrap();
    success(folder.exporter(&[]));
    assert!(first == fs::read(folder.path("retinanet.onnx")).unwrap(), "the same inputs give the same bytes");
}

#[test]
fn the_summary_lists_the_layers() {
    let folder = Folder::with(checkpoint());
    let printed = success(folder.exporter(&["--summary"]));
    let row = |name: &str| printed.lines().find(|line| line.split_whitespace().next() == Some(name));
    assert!(row("layer4.1.conv2").unwrap().contains("[1, 512, 19, 32]"), "{printed}");
    assert!(row("total").unwrap().contains("11,479,350"), "{printed}");
}

#[test]
fn a_file_that_contradicts_the_probe_never_gets_its_name() {
    type Change = fn(&mut Checkpoint);
    let changes: [(&str, Change); 5] = [
        ("scores by 2.0e-4", |checkpoint| checkpoint.probe.classification[[1, 5, 1]] += 2e-4),
        ("offsets by 2.0e-3", |checkpoint| checkpoint.probe.regression[[0, 1160, 3]] -= 2e-3),
        ("scores by NaN", |checkpoint| checkpoint.probe.classification[[0, 0, 0]] = f32::NAN),
        ("scores by NaN", |checkpoint| tensor(checkpoint, "conv1.weight").fill(f32::NAN)),
        ("offsets by 1.0e-2", |checkpoint| *tensor(checkpoint, "regressionModel.output.bias") += 0.01),
    ];
    for (expected, change) in changes {
        let mut checkpoint = checkpoint().clone();
        change(&mut checkpoint);
        let folder = Folder::with(&checkpoint);
        fs::write(folder.path("retinanet.onnx"), "the earlier file").unwrap();
        let message = failure(folder.exporter(&[]));
        assert!(message.contains("ONNX Runtime and libtorch differ") && message.contains(expected), "{message}");
        assert_eq!(fs::read(folder.path("retinanet.onnx")).unwrap(), b"the earlier file");
        assert_eq!(folder.files(), ["retinanet.onnx", "runs"]);
    }
}

#[test]
fn a_missing_checkpoint_is_named_with_the_program_that_makes_it() {
    let folder = Folder::empty();
    let message = failure(folder.exporter(&[]));
    assert!(message.contains("`runs/latest/best.safetensors`") && message.contains("`trainer fit`"), "{message}");
    assert!(folder.files().is_empty());
}

#[test]
fn a_damaged_foreign_or_misshapen_checkpoint_is_refused() {
    let folder = Folder::with(checkpoint());
    let best = folder.path("runs/latest/best.safetensors");
    let whole = fs::read(&best).unwrap();
    for (bytes, expected) in
        [(&whole[..whole.len() / 2], "damaged"), (&b"\x08\0\0\0\0\0\0\0{}      "[..], "no checkpoint")]
    {
        fs::write(&best, bytes).unwrap();
        let message = failure(folder.exporter(&[]));
        assert!(message.contains("best.safetensors") && message.contains(expected), "{message}");
    }
    let mut misshapen = checkpoint().clone();
    misshapen.tensors.insert("fpn.P6.bias".to_owned(), ArrayD::zeros(IxDyn(&[9])));
    misshapen.tensors.remove("bn1.bias");
    misshapen.write(&best).unwrap();
    let message = failure(folder.exporter(&[]));
    assert!(message.contains("`fpn.P6.bias` has shape [9], expected [32]"), "{message}");
    assert!(message.contains("missing: bn1.bias"), "{message}");
    assert_eq!(folder.files(), ["runs"]);
}

#[test]
fn a_target_that_cannot_be_written_is_found_before_the_checkpoint_is_read() {
    let folder = Folder::empty();
    for out in ["nowhere/model.onnx", "."] {
        let message = failure(folder.exporter(&["--out", out]));
        assert!(message.contains(&format!("cannot write `{out}`")), "{message}");
    }
}

#[test]
fn a_missing_onnx_runtime_is_an_error_and_leaves_no_file() {
    let folder = Folder::with(checkpoint());
    let message = failure(folder.exporter(&["--onnxruntime", "/nonexistent/libonnxruntime.so"]));
    assert!(message.contains("/nonexistent/libonnxruntime.so"), "{message}");
    assert_eq!(folder.files(), ["runs"]);
}

fn tensor<'a>(checkpoint: &'a mut Checkpoint, name: &str) -> &'a mut ArrayD<f32> {
    checkpoint.tensors.get_mut(name).unwrap()
}

/// A working folder.
struct Folder(tempfile::TempDir);

impl Folder {
    fn empty() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// One whose latest run has this best checkpoint.
    fn with(checkpoint: &Checkpoint) -> Self {
        let folder = Self::empty();
        fs::create_dir_all(folder.path("runs/latest")).unwrap();
        checkpoint.write(&folder.path("runs/latest/best.safetensors")).unwrap();
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn exporter(&self, arguments: &[&str]) -> Output {
        // The search of a program that works in some other folder does not lead to this checkout.
        let library = runtime::library::find(None).unwrap().path;
        Command::new(env!("CARGO_BIN_EXE_exporter"))
            .args(arguments)
            .current_dir(self.0.path())
            .env("ORT_DYLIB_PATH", library)
            .output()
            .unwrap()
    }
}

fn success(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The message of a failed run, which says nothing else.
fn failure(output: Output) -> String {
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.starts_with("error: ") && output.stdout.is_empty(), "{message}");
    message
}

/// A checkpoint whose probe was answered by ONNX Runtime.
fn checkpoint() -> &'static Checkpoint {
    static CHECKPOINT: LazyLock<Checkpoint> = LazyLock::new(|| {
        let yaml =
            "{pyramid: {width: 32}, heads: {width: 32}, classes: [{id: 1, name: cell}, {id: 5, name: platelet}]}";
        let mut spec = ModelSpec::from_yaml(yaml).unwrap();
        spec.backbone.depth = 18;
        spec.backbone.norm = NormSpec { kind: NormKind::Batch, ..NormSpec::default() };
        let random = &mut Random(1);
        let parameters = parameters(&spec).unwrap().into_iter();
        let tensors = parameters.map(|parameter| (parameter.name.clone(), weights(random, &parameter)));
        let provenance = Provenance { program: "a test".to_owned(), epoch: Some(3), ap: None, origin: None };
        let mut checkpoint = Checkpoint {
            tensors: tensors.collect(),
            provenance,
            probe: Probe {
                images: noise(random, &Probe::SIZE, 1.0).into_dimensionality().unwrap(),
                classification: Array3::zeros((0, 0, 0)),
                regression: Array3::zeros((0, 0, 0)),
            },
            spec,
        };
        let model = to_onnx(&checkpoint.spec, checkpoint.tensors.clone(), &checkpoint.provenance).unwrap();
        let engine = Engine::from_bytes("model", &model, &EngineOptions::default()).unwrap();
        let images: &Array4<f32> = &checkpoint.probe.images;
        let outputs = engine.run(images.view()).unwrap();
        (checkpoint.probe.classification, checkpoint.probe.regression) =
            (outputs.scores().to_owned(), outputs.offsets().to_owned());
        checkpoint
    });
    &CHECKPOINT
}

/// Weights around those that training starts from, small enough that the scores are neither 0 nor 1.
fn weights(random: &mut Random, parameter: &Parameter) -> ArrayD<f32> {
    match parameter.initial {
        Initial::Constant(value) => noise(random, &parameter.shape, 0.1) + value,
        Initial::Normal { std } => noise(random, &parameter.shape, std),
        Initial::Uniform { bound } => noise(random, &parameter.shape, bound),
    }
}

/// Uniform numbers in `[-bound, bound)`.
fn noise(random: &mut Random, shape: &[usize], bound: f32) -> ArrayD<f32> {
    ArrayD::from_shape_simple_fn(IxDyn(shape), || (random.unit() * 2.0 - 1.0) * bound)
}

/// A linear congruential generator: Knuth's MMIX.
struct Random(u64);

impl Random {
    /// The next number in [0, 1).
    fn unit(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1 << 24) as f32
    }
}
