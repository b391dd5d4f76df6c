//! Tests of `trainer import`: with PyTorch files from `tests/golden/pytorch_files.py`, and with other files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use models::spec::P6From;
use models::{BackboneCheckpoint, Checkpoint, ModelSpec, parameters};
use trainer::config::TrainConfig;

use crate::project::{CONFIG, assert_contains, stderr, stdout, trainer};

/// All elements of the files' tensors are multiples of 1 / PARTS.
const PARTS: f32 = 4096.0;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn import(folder: &Path, file: &Path, arguments: &[&str]) -> Output {
    let fixed = ["import", file.to_str().unwrap(), "--out", "out.safetensors"];
    trainer(folder, &[fixed.as_slice(), arguments].concat())
}

/// Imports a file, asserts success, and returns stdout.
fn imported(folder: &Path, file: &Path, arguments: &[&str]) -> String {
    let output = import(folder, file, arguments);
    assert!(output.status.success(), "{}: {}", file.display(), stderr(&output));
    stdout(&output)
}

/// Imports a file, asserts that it fails and changes no file, and returns stderr.
fn refused(folder: &Path, file: &Path, arguments: &[&str]) -> String {
    let before = listing(folder);
    let output = import(folder, file, arguments);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{}: {message}", file.display());
    assert_eq!(listing(folder), before);
    message
}

/// Paths and contents of the files in a folder.
fn listing(folder: &Path) -> Vec<(PathBuf, Option<Vec<u8>>)> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut listing: Vec<_> = entries.map(|path| (path.clone(), fs::read(&path).ok())).collect();
    listing.sort();
    listing
}

/// The value that the script gives to all elements of the tensor `name`.
fn number(name: &str) -> f32 {
    (name.len() % 5 + 1) as f32 / PARTS
}

#[test]
fn every_file_format_gives_the_same_weights() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.safetensors");
    let mut first: Option<Checkpoint> = None;
    for (file, parts) in [
        ("state_dict.pth", ["matched 134:", "converted 2 (3 outputs to 2 classes): classificationModel.output (2)"]),
        ("legacy.pth", ["(F16 to F32): bn1.weight, ", "unexpected 1 (ignored): optimizer.state"]),
        ("module.pth", ["kind torchvision-v1: ", "missing: none"]),
        ("legacy_detector.pth", ["kind torchvision-v1: ", "missing: none"]),
    ] {
        assert_contains(&imported(folder.path(), &data(file), &["--background", "first"]), &parts);
        let checkpoint = Checkpoint::open(&out).unwrap();
        let origin = checkpoint.provenance.origin.clone().unwrap();
        assert_eq!((origin.file.as_str(), origin.kind.as_str()), (file, "torchvision-v1"));
        let first = first.get_or_insert_with(|| checkpoint.clone());
        assert_eq!((&checkpoint.spec, &checkpoint.probe), (&first.spec, &first.probe), "{file}");
        assert!(checkpoint.tensors == first.tensors, "{file}");
    }
    let Checkpoint { spec, tensors, .. } = first.unwrap();
    // The configuration for training from the checkpoint.
    assert!(trainer(folder.path(), &["init", "--from", "out.safetensors"]).status.success());
    let written = fs::read_to_string(folder.path().join("retinanet.yaml")).unwrap();
    assert_contains(&written, &["trainer fit --weights out.safetensors\nmodel:\n  format: 2\n"]);
    let config: TrainConfig = serde_yaml::from_str(&written).unwrap();
    assert_eq!(config.model, ModelSpec { classes: Vec::new(), ..spec.clone() });
    assert_eq!((spec.backbone.depth, spec.pyramid.p6_from), (18, P6From::P5));
    for (ours, theirs) in [
        ("layer2.1.bn2.running_var", "backbone.body.layer2.1.bn2.running_var"),
        ("fpn.P4_2.weight", "backbone.fpn.layer_blocks.1.0.weight"),
        ("classificationModel.output.weight", "head.classification_head.cls_logits.weight"),
        ("regressionModel.conv4.bias", "head.regression_head.conv.3.0.bias"),
    ] {
        assert!(tensors[ours].iter().all(|value| *value == number(theirs)), "{ours}");
    }
    // A transposed view.
    assert_eq!(tensors["conv1.weight"][[63, 2, 1, 5]], 37.0 / PARTS);
}

#[test]
fn import_is_reproducible_and_options_change_the_spec() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.safetensors");
    imported(folder.path(), &data("state_dict.pth"), &["--background", "first"]);
    let first = fs::read(&out).unwrap();
    imported(folder.path(), &data("state_dict.pth"), &["--kind", "torchvision-v1", "--background", "first"]);
    assert!(fs::read(&out).unwrap() == first);

    fs::write(folder.path().join("names.txt"), "cell\nplatelet\n").unwrap();
    let more = ["--classes", "names.txt", "--norm-epsilon", "0.001"];
    assert_contains(&imported(folder.path(), &data("state_dict.pth"), &more), &["2 classes: cell, platelet"]);
    let checkpoint = Checkpoint::open(&out).unwrap();
    assert_eq!((checkpoint.spec.backbone.norm.epsilon, checkpoint.spec.classes[1].name.as_str()), (1e-3, "platelet"));
    assert_eq!(checkpoint.tensors.len(), parameters(&checkpoint.spec).unwrap().len());
}

/// Two outputs or three, classes from 0 or from 1: right names and rows, or a question that an option answers.
#[test]
fn outputs_are_never_dropped_without_a_word() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.safetensors");
    let names = |arguments: &[&str], file: &str| {
        imported(folder.path(), &data(file), arguments);
        let checkpoint = Checkpoint::open(&out).unwrap();
        let rows = checkpoint.tensors["classificationModel.output.bias"].len() / 9;
        assert_eq!(rows, checkpoint.spec.class_count());
        checkpoint.spec.classes.into_iter().map(|class| (class.id, class.name)).collect::<Vec<_>>()
    };
    let class = |id: i64, name: &str| (id, name.to_owned());
    let question = refused(folder.path(), &data("state_dict.pth"), &[]);
    assert_contains(
        &question,
        &["it has 3 outputs per anchor", "--background none", "--background first", "--classes"],
    );
    let none = names(&["--background", "none"], "state_dict.pth");
    assert_eq!(none, [class(0, "class 0"), class(1, "class 1"), class(2, "class 2")]);
    assert_eq!(names(&["--background", "first"], "state_dict.pth"), [class(1, "class 1"), class(2, "class 2")]);
    for (file, list, count) in [("two.txt", "cell\nplatelet\n", 2), ("three.txt", "a\nb\nc\n", 3)] {
        fs::write(folder.path().join(file), list).unwrap();
        assert_eq!(names(&["--classes", file], "state_dict.pth").len(), count);
    }
    fs::write(folder.path().join("one.txt"), "cell\n").unwrap();
    let wrong = refused(folder.path(), &data("state_dict.pth"), &["--classes", "one.txt"]);
    assert_contains(&wrong, &["it has 3 outputs per anchor, but 1 classes are listed", "--classes"]);

    // DeepForest's checkpoint says the names, and the thresholds.
    assert_eq!(names(&[], "deepforest.ckpt"), [class(0, "Alive"), class(1, "Dead")]);
    let rules = Checkpoint::open(&out).unwrap().spec.postprocessing;
    assert_eq!((rules.score_threshold, rules.nms_threshold, rules.max_detections), (0.1, 0.05, Some(300)));
}

#[test]
fn config_json_beside_safetensors_has_labels_and_thresholds() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.safetensors");
    imported(folder.path(), &data("deepforest.ckpt"), &[]);
    let imported_names = Checkpoint::open(&out).unwrap();
    // The same tensors as safetensors, under the names of torchvision.
    let hub = folder.path().join("hub");
    fs::create_dir(&hub).unwrap();
    let script = data("deepforest.ckpt");
    let file = pytorch_file::PyTorchFile::new(fs::read(script).unwrap()).unwrap();
    let tensors: Vec<_> = file.tensors().keys().map(|name| (name.clone(), file.read(name).unwrap())).collect();
    let views = tensors.iter().map(|(name, bytes)| {
        let shape = file.tensors()[name].shape().to_vec();
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, bytes).unwrap();
        (name.trim_start_matches("state_dict.model.").to_owned(), view)
    });
    let weights = hub.join("model.safetensors");
    safetensors::serialize_to_file(views, None, &weights).unwrap();
    assert_contains(&refused(folder.path(), &weights, &[]), &["it has 2 outputs per anchor"]);
    let config =
        r#"{"num_classes": 2, "nms_thresh": 0.05, "score_thresh": 0.1, "label_dict": {"Alive": 0, "Dead": 1}}"#;
    fs::write(hub.join("config.json"), config).unwrap();
    assert_contains(
        &imported(folder.path(), &weights, &[]),
        &["2 classes: Alive, Dead (from label_dict in config.json)"],
    );
    let from_hub = Checkpoint::open(&out).unwrap();
    assert_eq!((&from_hub.spec, from_hub.tensors), (&imported_names.spec, imported_names.tensors));
    // Labels of another model.
    fs::write(hub.join("config.json"), r#"{"label_dict": {"Tree": 0}}"#).unwrap();
    assert_contains(&refused(folder.path(), &weights, &[]), &["label_dict in config.json", "--classes"]);
}

#[test]
fn pickles_of_numpy_arrays_are_recognized() {
    let folder = tempfile::tempdir().unwrap();
    let message = refused(folder.path(), &data("detectron2.pkl"), &[]);
    // Three of its five tensors have the right shape; it has no backbone.
    assert_contains(&message, &["its backbone has stages of [0, 0, 0, 0] basic blocks"]);
}

#[test]
fn imported_backbone_can_be_trained_but_not_evaluated() {
    let folder = tempfile::tempdir().unwrap();
    assert_contains(
        &imported(folder.path(), &data("backbone.pth"), &[]),
        &["kind torchvision-backbone", "dropped 20 (counters of training steps)", "fc.bias, fc.weight"],
    );
    let backbone = BackboneCheckpoint::open(&folder.path().join("out.safetensors")).unwrap();
    assert!(trainer(folder.path(), &["init", "--from", "out.safetensors", "--out", "from.yaml"]).status.success());
    let config: TrainConfig =
        serde_yaml::from_str(&fs::read_to_string(folder.path().join("from.yaml")).unwrap()).unwrap();
    let mut expected = ModelSpec { backbone: backbone.spec.backbone.clone(), ..ModelSpec::default() };
    expected.preprocessing.round_pixels = true;
    assert_eq!(config.model, expected);
    assert_eq!((backbone.spec.backbone.depth, backbone.tensors.len()), (18, 100));
    let origin = backbone.provenance.origin.unwrap();
    let output = std::process::Command::new("sha256sum").arg(data("backbone.pth")).output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().starts_with(&origin.sha256), "{origin:?}");
    let eval = trainer(folder.path(), &["eval", "--checkpoint", "out.safetensors", "--data", "none.json"]);
    assert!(!eval.status.success());

    let synth =
        ["synth", "--out", "shapes", "--width", "64", "--height", "64", "--train", "2", "--val", "1", "--test", "0"];
    assert!(trainer(folder.path(), &synth).status.success());
    let config = CONFIG
        .replace("run: {epochs: 2, batch_size: 4,", "optimizer: {learning_rate: 0}\nrun: {epochs: 1, batch_size: 2,")
        .replace("depth: 50, width_per_group: 4, norm: {kind: batch}", "depth: 18, norm: {kind: frozen_batch}");
    fs::write(folder.path().join("retinanet.yaml"), config).unwrap();
    let fit = trainer(folder.path(), &["fit", "--weights", "out.safetensors"]);
    let message = stderr(&fit);
    assert!(fit.status.success(), "{message}");
    assert_contains(&message, &["100 tensors loaded: bn1.bias"]);
    assert!(!message.contains("warning: its spec differs"), "{message}");
    let trained = Checkpoint::open(&folder.path().join("runs/latest/last.safetensors")).unwrap();
    assert!(backbone.tensors.iter().all(|(name, tensor)| trained.tensors[name] == *tensor));
}

#[test]
fn invalid_files_are_errors_and_the_existing_output_is_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("out.safetensors"), "earlier").unwrap();
    // A pickle that runs os.system("touch executed") when Python loads it.
    let command = b"\x80\x02cos\nsystem\n(X\x0e\0\0\0touch executedtR.";
    for (content, parts) in [
        (&b""[..], ["it is empty", "file.pth"]),
        (b"<!DOCTYPE html><title>404</title>", ["a web page", "file.pth"]),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a", ["git lfs pull", "file.pth"]),
        (b"weights", ["neither a PyTorch file nor safetensors", "file.pth"]),
        (b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", ["a zip file", "unpack it first"]),
        (b"PK\x03\x04 and no more", ["damaged", "file.pth"]),
        (b"\x10\0\0\0\0\0\0\0{\"a\":", ["damaged", "file.pth"]),
        (command, ["`os.system`", "nothing was executed"]),
    ] {
        let file = folder.path().join("file.pth");
        fs::write(&file, content).unwrap();
        assert_contains(&refused(folder.path(), &file, &[]), &parts);
    }
    assert_contains(
        &refused(folder.path(), &data("legacy_module.pth"), &[]),
        &["unknown kind of weights; it contains `weight`; kinds: torchvision-backbone"],
    );
    assert_contains(&refused(folder.path(), &folder.path().join("missing.pth"), &[]), &["missing.pth", "No such file"]);
    assert_contains(&refused(folder.path(), folder.path(), &[]), &["Is a directory"]);
    let wrong_kind = refused(folder.path(), &data("backbone.pth"), &["--kind", "yhenon"]);
    assert_contains(&wrong_kind, &["it has no tensor `classificationModel.output.weight`", "`bn1.bias`"]);
    assert_contains(
        &refused(folder.path(), &data("backbone.pth"), &["--norm-epsilon", "nan"]),
        &["--norm-epsilon NaN"],
    );
    assert!(!folder.path().join("executed").exists());
}

#[test]
fn trainer_files_and_unwritable_outputs_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    imported(folder.path(), &data("backbone.pth"), &[]);
    let ours = folder.path().join("out.safetensors");
    assert_contains(&refused(folder.path(), &ours, &[]), &["written by `trainer`", "no import"]);
    let refused = |out: &str| {
        let output = trainer(folder.path(), &["import", data("backbone.pth").to_str().unwrap(), "--out", out]);
        assert_eq!(output.status.code(), Some(1), "{out}");
        stderr(&output)
    };
    assert_contains(
        &refused("missing/out.safetensors"),
        &["cannot write `missing/out.safetensors`", "create its folder"],
    );
    assert_contains(&refused("."), &["cannot write `.`"]);
    assert_contains(&refused("/dev/full"), &["/dev/full", "No space left on device"]);
}

#[test]
fn pytorch_file_in_place_of_a_checkpoint_is_an_error_that_mentions_import() {
    let folder = tempfile::tempdir().unwrap();
    let error = Checkpoint::open(&data("state_dict.pth")).unwrap_err().to_string();
    assert_contains(&error, &["a PyTorch file", "trainer import"]);
    let weights = data("legacy.pth");
    let fit = trainer(folder.path(), &["fit", "--weights", weights.to_str().unwrap()]);
    assert!(!fit.status.success());
}
