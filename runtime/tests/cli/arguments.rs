//! Output, errors and exit codes of the program without a model.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use image::RgbImage;
use tempfile::TempDir;

use crate::fixture::{program, run};

/// Runs the command and expects one line on stderr with all of `parts`, this exit code, and no output on stdout.
fn expect_error(command: &mut Command, code: i32, parts: &[&str]) {
    let (found, stdout, stderr) = run(command);
    assert_eq!((found, stdout.as_str()), (code, ""), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    for part in parts {
        assert!(stderr.contains(part), "`{part}` is not in: {stderr}");
    }
}

/// A folder with an image, `a.png`, a file that is not ONNX, `garbage.onnx`, and an ONNX model of another program,
/// `other.onnx`.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    RgbImage::new(40, 30).save(folder.path().join("a.png")).unwrap();
    fs::write(folder.path().join("garbage.onnx"), "garbage").unwrap();
    fs::write(folder.path().join("other.onnx"), other_model()).unwrap();
    folder
}

/// A valid ONNX file that `exporter` did not write: one node that copies `x` to `y`.
fn other_model() -> Vec<u8> {
    // <https://github.com/onnx/onnx/blob/main/onnx/onnx.proto>, <https://protobuf.dev/programming-guides/encoding/>
    fn number(tag: u8, value: u8) -> Vec<u8> {
        vec![tag << 3, value]
    }
    fn bytes(tag: u8, content: &[u8]) -> Vec<u8> {
        [&[tag << 3 | 2, u8::try_from(content.len()).unwrap()], content].concat()
    }
    let size = bytes(1, &number(1, 1));
    let tensor_type = [number(1, 1), bytes(2, &size)].concat();
    let value = |name: &[u8]| [bytes(1, name), bytes(2, &bytes(1, &tensor_type))].concat();
    let node = [bytes(1, b"x"), bytes(2, b"y"), bytes(4, b"Identity")].concat();
    let graph = [bytes(1, &node), bytes(2, b"copy"), bytes(11, &value(b"x")), bytes(12, &value(b"y"))].concat();
    [number(1, 8), bytes(7, &graph), bytes(8, &number(2, 17))].concat()
}

#[test]
fn wrong_usage_exits_with_2() {
    let folder = folder();
    let wrong: [&[&str]; 21] = [
        &[],
        &["detect"],
        &["detect", "--unknown", "a.png"],
        &["detect", "--provider", "gpu", "a.png"],
        &["detect", "--min-score", "2", "a.png"],
        &["detect", "--threads", "0", "a.png"],
        &["detect", "--batch-size", "0", "a.png"],
        &["detect", "--batch-size", "18446744073709551615", "a.png"],
        &["detect", "--workers", "100000", "a.png"],
        &["bench", "--batch-sizes", "1,100000"],
        &["detect", "--json", "-", "--csv", "-", "a.png"],
        &["detect", "--stdin", "a.png"],
        &["detect", "--nms-iou", "-1", "a.png"],
        &["detect", "--soft-nms", "0", "a.png"],
        &["detect", "--top-k", "0", "a.png"],
        &["detect", "--tile", "8x8", "a.png"],
        &["detect", "--tile-overlap", "0.5", "a.png"],
        &["bench", "--size", "big"],
        &["eval", "--data", "t.json", "--voc-iou", "0"],
        &["score", "--truth", "t.json", "--detections", "d.json", "--confusion", "sure"],
        &["score", "--truth", "-", "--detections", "-"],
    ];
    for arguments in wrong {
        let (code, stdout, stderr) = run(program(&folder).args(arguments));
        assert_eq!((code, stdout.as_str()), (2, ""), "{arguments:?}: {stderr}");
    }
    let (_, _, stderr) = run(program(&folder).args(["detect", "--provider", "gpu", "a.png"]));
    assert!(stderr.contains("unknown provider `gpu`; expected `cpu`"), "{stderr}");
}

#[test]
fn the_error_of_a_missing_model_names_it() {
    let folder = folder();
    expect_error(program(&folder).args(["detect", "a.png"]), 1, &["`retinanet.onnx`", "exporter --out"]);
}

#[test]
fn models_not_written_by_exporter_are_errors() {
    let folder = folder();
    for (model, reason) in [("garbage.onnx", "not an ONNX file"), ("other.onnx", "no `retinanet.spec`")] {
        let parts = [model, "not a RetinaNet written by `exporter`", reason, "exporter --out"];
        expect_error(program(&folder).args(["detect", "--model", model, "a.png"]), 1, &parts);
    }
}

#[test]
fn a_folder_without_images_and_a_pattern_without_matches_are_errors() {
    let folder = folder();
    fs::create_dir(folder.path().join("empty")).unwrap();
    expect_error(program(&folder).args(["detect", "empty"]), 1, &["no images in folder `empty`"]);
    expect_error(program(&folder).args(["detect", "*.jpg"]), 1, &["no file matches pattern `*.jpg`"]);
}

#[test]
fn the_error_of_a_missing_onnx_runtime_names_the_library() {
    let folder = folder();
    let mut by_variable = program(&folder);
    by_variable.env("ORT_DYLIB_PATH", "/nonexistent").args(["detect", "--model", "other.onnx", "a.png"]);
    expect_error(&mut by_variable, 1, &["/nonexistent", "ORT_DYLIB_PATH", "make setup"]);

    let mut by_option = program(&folder);
    by_option.args(["detect", "--model", "other.onnx", "--onnxruntime", "lib/none.so", "a.png"]);
    let path = folder.path().canonicalize().unwrap().join("lib/none.so");
    expect_error(&mut by_option, 1, &[path.to_str().unwrap(), "--onnxruntime"]);
}

#[test]
fn an_unavailable_cuda_device_is_an_error() {
    let folder = folder();
    let mut command = program(&folder);
    command.args(["detect", "--model", "other.onnx", "--provider", "cuda:3", "a.png"]);
    let (code, stdout, stderr) = run(&mut command);
    assert_eq!((code, stdout.as_str()), (1, ""), "{stderr}");
    // On a machine with four GPUs, the model is the error.
    assert!(stderr.contains("provider `cuda:3` cannot start") || stderr.contains("other.onnx"), "{stderr}");
}

#[test]
fn options_of_other_providers_are_errors() {
    let folder = folder();
    for (options, reason) in [
        (&["--cuda-memory", "100"][..], "only `cuda` supports it"),
        (&["--tensorrt-fp16"], "only `tensorrt` supports it"),
        (&["--tensorrt-profile", "1x64x64,1x64x96,2x96x96"], "only `tensorrt` supports it"),
        (&["--threads", "2", "--affinity", "0,1"], "one CPU fewer"),
        (&["--threads", "100000"], "100000 is not between 1 and 1024"),
        #[cfg(target_os = "linux")]
        (&["--threads", "2", "--affinity", "123456"], "CPU 123456 is not available to this program"),
    ] {
        let arguments = ["detect", "--model", "other.onnx", "a.png"].iter().chain(options);
        expect_error(program(&folder).args(arguments), 1, &[reason]);
    }
    for profile in ["1x64x64", "1x64x64,1x64x96,2x96x90", "2x64x64,1x64x64,1x64x64", "0x64x64,1x64x64,1x64x64"] {
        let (code, _, stderr) = run(program(&folder).args(["detect", "--tensorrt-profile", profile, "a.png"]));
        assert_eq!(code, 2, "{profile}: {stderr}");
    }
}

#[test]
fn doctor_reports_what_works_and_what_is_missing() {
    let folder = folder();
    let (code, stdout, stderr) = run(program(&folder).arg("doctor"));
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    for part in ["ONNX Runtime", "set by ORT_DYLIB_PATH", "--provider cpu", "works; started in", "cuDNN"] {
        assert!(stdout.contains(part), "`{part}` is not in: {stdout}");
    }
    let (code, stdout, _) = run(program(&folder).args(["doctor", "--json", "-"]));
    let health: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, health["providers"].as_array().unwrap().len()), (0, 4));
    assert!(health["providers"][0]["smoke_test_ms"].as_f64().unwrap() > 0.0);

    // A model that cannot be checked is not right.
    let (code, stdout, _) = run(program(&folder).args(["doctor", "--model", "other.onnx"]));
    assert_eq!(code, 1);
    assert!(stdout.contains("model on cpu") && stdout.contains("cannot run: `other.onnx`"), "{stdout}");

    // A file that is not a library is an error that names it.
    for library in ["garbage.onnx", "missing.so"] {
        let (code, stdout, _) = run(program(&folder).args(["doctor", "--onnxruntime", library]));
        assert_eq!(code, 1);
        assert!(stdout.contains(library) && stdout.contains("make setup"), "{stdout}");
    }
}

#[test]
fn annotated_images_do_not_overwrite_inputs() {
    let folder = folder();
    expect_error(program(&folder).args(["detect", "--draw", ".", "a.png"]), 1, &["a.png", "choose another folder"]);
}

#[test]
fn negative_numbers_are_values_and_typos_get_a_suggestion() {
    let folder = folder();
    for (arguments, message) in [
        (["detect", "--min-score", "-1", "a.png"], "invalid value '-1' for '--min-score <SCORE>'"),
        (["detect", "--batch-size", "-2", "a.png"], "invalid value '-2' for '--batch-size <N>'"),
        (["detect", "--modle", "b.onnx", "a.png"], "a similar argument exists: '--model'"),
        (["detcet", "--model", "b.onnx", "a.png"], "a similar subcommand exists: 'detect'"),
    ] {
        let (code, _, stderr) = run(program(&folder).args(arguments));
        assert!(code == 2 && stderr.contains(message), "{stderr}");
    }
}

#[test]
fn eval_reads_every_annotation_format() {
    let folder = folder();
    let voc = "<annotation><object><name>dog</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax>\
        </bndbox></object></annotation>";
    let yolo = "0 0.5 0.5 0.1 0.1\n";
    for (name, text) in [
        ("boxes.csv", "a.png,1,2,3,4,dog\n"),
        ("voc/a.xml", voc),
        ("yolo/a.txt", yolo),
        ("yolo/classes.txt", "dog"),
        ("list", "a\n"),
    ] {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    // The data are read before the model, so only the missing model is an error.
    for data in ["boxes.csv", "voc", "yolo"] {
        let arguments = ["eval", "--images", ".", "--list", "list", "--data", data];
        expect_error(program(&folder).args(arguments), 1, &["`retinanet.onnx`", "exporter --out"]);
    }
    let parts = ["boxes.csv` is not a COCO data set"];
    expect_error(program(&folder).args(["eval", "--data", "boxes.csv", "--format", "coco"]), 1, &parts);
    fs::create_dir(folder.path().join("empty")).unwrap();
    expect_error(program(&folder).args(["eval", "--data", "empty"]), 1, &["neither XML files (VOC) nor text files"]);
}

#[test]
fn unwritable_outputs_are_errors_before_the_work_starts() {
    let folder = folder();
    for option in ["--json", "--csv"] {
        expect_error(
            program(&folder).args(["detect", option, "missing/out", "a.png"]),
            1,
            &["cannot write `missing/out`"],
        );
        expect_error(program(&folder).args(["detect", option, ".", "a.png"]), 1, &["cannot write `.`"]);
    }
    expect_error(program(&folder).args(["detect", "--draw", "a.png", "a.png"]), 1, &["cannot write", "`a.png`"]);
    // Model and ground truth are missing too, but are read later.
    for command in [["eval", "--data", "t.json"].as_slice(), &["score", "--truth", "t.json", "--detections", "d.json"]]
    {
        expect_error(
            program(&folder).args(command).args(["--json", "missing/out"]),
            1,
            &["cannot write `missing/out`"],
        );
    }
    // No temporary files of the opened outputs remain.
    let parts = ["`retinanet.onnx`"];
    expect_error(program(&folder).args(["detect", "--json", "a.json", "--csv", "a.csv", "a.png"]), 1, &parts);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
}

#[test]
fn names_of_files_need_not_be_utf_8() {
    let folder = folder();
    let name = OsStr::from_bytes(b"\xE9.png");
    fs::copy(folder.path().join("a.png"), folder.path().join(name)).unwrap();
    let (code, _, stderr) = run(program(&folder).args(["detect", "--model", "garbage.onnx"]).arg(name));
    assert!(code == 1 && stderr.contains("not an ONNX file"), "{code}: {stderr}");
}
