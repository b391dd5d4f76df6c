//! Files are verified when they are written and where they run.

use std::fs;

use models::{Checkpoint, HeadOutputs};
use runtime::{Check, EngineOptions};

use crate::fixture::{Folder, checkpoint, checkpoint_with_detections, failure, open, success, tensor};

#[test]
fn a_file_that_does_not_reproduce_the_probe_is_not_written() {
    type Change = fn(&mut Checkpoint);
    let changes: [(&str, Change); 8] = [
        ("does not reproduce", |checkpoint| checkpoint.probe.outputs.logits[[1, 5, 1]] += 1e-3),
        ("does not reproduce", |checkpoint| checkpoint.probe.outputs.offsets[[0, 1160, 3]] -= 1e-3),
        ("does not reproduce", |checkpoint| checkpoint.probe.outputs.features[1][[1, 128, 31]] -= 1e-3),
        ("error is NaN times", |checkpoint| checkpoint.probe.outputs.logits[[0, 0, 0]] = f32::NAN),
        ("error is NaN times", |checkpoint| tensor(checkpoint, "conv1.weight").fill(f32::NAN)),
        ("does not reproduce", |checkpoint| *tensor(checkpoint, "regressionModel.output.bias") += 1e-5),
        ("does not reproduce", |checkpoint| {
            checkpoint.probe.rounding = [[f32::INFINITY; 2]; HeadOutputs::PARTS];
            *tensor(checkpoint, "regressionModel.conv4.weight") *= 1.01;
        }),
        ("probe are constant", |checkpoint| checkpoint.probe.outputs.features[0].fill(0.5)),
    ];
    for (expected, change) in changes {
        let mut checkpoint = checkpoint().clone();
        change(&mut checkpoint);
        let folder = Folder::with(&checkpoint);
        fs::write(folder.path("retinanet.onnx"), "the earlier file").unwrap();
        let message = failure(folder.exporter(&[]));
        assert!(message.contains(expected) && message.contains("no file was written"), "{message}");
        assert_eq!(fs::read(folder.path("retinanet.onnx")).unwrap(), b"the earlier file");
        assert_eq!(folder.files(), ["retinanet.onnx", "runs"]);
    }
}

#[test]
fn every_variant_and_precision_carries_a_check_that_runs_elsewhere() {
    let folder = Folder::with(&checkpoint_with_detections());
    folder.add_images(2);
    for (precision, limit) in [
        (&["--precision", "fp32"][..], 0.01),
        (&["--precision", "fp16"], 0.02),
        (&["--precision", "int8", "--calibrate", "images"], 0.11),
        (&["--precision", "int8", "--calibrate", "images", "--keep-float", "classificationModel.output"], 0.11),
    ] {
        for variant in [
            &[][..],
            &["--top-k", "20", "--batch-size", "2"],
            &["--end-to-end", "--input", "uint8", "--input-size", "96x160"],
            &["--external-data"],
        ] {
            success(folder.exporter(&[precision, variant].concat()));
            let report = Check::run(&folder.path("retinanet.onnx"), &EngineOptions::default()).unwrap();
            assert!(report.passes() && report.limit == limit, "{precision:?} {variant:?}: {report}");
            assert!(limit > 0.01 || report.logits.rms() < 1e-5, "{variant:?}: {report}");
        }
    }
}

#[test]
fn a_file_says_where_it_was_proven_and_wrong_numbers_are_noticed() {
    let folder = Folder::with(&checkpoint_with_detections());
    let printed = success(folder.exporter(&["--prove", "cpu,openvino:npu", "--end-to-end"]));
    assert!(printed.contains("  on cpu       RMS difference") && printed.contains("not proven: "), "{printed}");
    let path = folder.path("retinanet.onnx");
    let engine = open(&folder, "retinanet.onnx");
    let keys: Vec<_> = engine.info().metadata.keys().filter(|key| key.starts_with("retinanet.proven")).collect();
    assert_eq!(keys, ["retinanet.proven.cpu"]);
    let described = success(folder.exporter(&["--describe", "retinanet.onnx"]));
    assert!(described.contains("retinanet.proven.cpu: ONNX Runtime 1.") && !described.contains("retinanet.check"));
    let whole = fs::read(&path).unwrap();
    success(folder.exporter(&["--prove", "cpu", "--end-to-end"]));
    assert!(whole == fs::read(&path).unwrap(), "the same inputs give the same bytes");

    // As if this machine computed other logits.
    let mut changed = whole.clone();
    let start = whole.windows(10).position(|window| window == b"\"logits\":\"").unwrap() + 10;
    changed[start..start + 4000].fill(b'0');
    fs::write(&path, &changed).unwrap();
    let report = Check::run(&path, &EngineOptions::default()).unwrap();
    assert!(!report.passes() && report.offsets.rms() < 1e-5, "{report}");
    changed[start] = b'x';
    fs::write(&path, &changed).unwrap();
    assert!(Check::run(&path, &EngineOptions::default()).unwrap_err().to_string().contains("not hexadecimal"));

    for (arguments, reason) in [(["--prove", "auto"], "not `auto`"), (["--prove", "tpu"], "unknown provider `tpu`")] {
        assert!(failure(folder.exporter(&arguments)).contains(reason));
    }
}
