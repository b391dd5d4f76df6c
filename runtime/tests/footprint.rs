//! `runtime` leaves no files behind, sends no telemetry, and loads no library from the current folder. A program of its own,
//! since it notices what other programs of the tests open.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]
#![allow(dead_code, reason = "not every test uses all of the fixture")]

#[path = "cli/fixture.rs"]
mod fixture;
#[path = "../../tests/src/footprint.rs"]
mod footprint;

use std::env;
use std::fs;
use std::process::Command;

use image::RgbImage;
use runtime::{Detector, DetectorOptions};

use fixture::{detect, folder, json, program, tiny_model};
use footprint::run_without_footprint;

#[test]
fn fifty_starts_leave_nothing_behind() {
    let folder = folder();
    for _ in 0..50 {
        let output = run_without_footprint(detect(&folder).args(["--json", "-", "1.png"]));
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
}

#[test]
fn a_program_that_only_uses_the_library_leaves_nothing_behind() {
    const MODEL: &str = "RETINANET_TEST_MODEL";
    // That program is this test, run by itself.
    if let Some(model) = env::var_os(MODEL) {
        Detector::open(model, DetectorOptions::default()).unwrap().detect(&RgbImage::new(40, 30)).unwrap();
        return;
    }
    let folder = folder();
    let model = folder.path().join("tiny.onnx");
    fs::write(&model, tiny_model()).unwrap();
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "a_program_that_only_uses_the_library_leaves_nothing_behind"]).env(MODEL, &model);
    let output = run_without_footprint(&mut command);
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{output:?}");
}

/// The telemetry of ONNX Runtime 1.30 overflows the stack for command lines of 45 kB.
#[test]
fn two_thousand_file_names_are_accepted() {
    let folder = folder();
    let png = fs::read(folder.path().join("below/4.png")).unwrap();
    let names: Vec<_> = (0..2000).map(|number| format!("a-rather-long-name-of-an-image-{number:05}.png")).collect();
    names.iter().for_each(|name| fs::write(folder.path().join(name), &png).unwrap());
    let model = folder.path().join("tiny.onnx");
    fs::write(&model, tiny_model()).unwrap();
    let mut command = program(&folder);
    let command = command.arg("detect").arg("--model").arg(&model).args(["--ndjson", "-"]).args(&names);
    let output = run_without_footprint(command);
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<_> = stdout.lines().map(json).collect();
    assert!(lines.iter().zip(&names).all(|(line, name)| line["file"] == **name && line["detections"].is_array()));
    assert_eq!(lines.len(), names.len());
}

#[test]
fn doctor_reports_that_telemetry_is_off_unless_the_user_enables_it() {
    let folder = folder();
    let telemetry = |value: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_runtime"));
        // Without ONNX Runtime, so that the test itself sends no telemetry.
        command.args(["doctor", "--json", "-", "--onnxruntime", "nowhere.so"]).current_dir(folder.path());
        match value {
            Some(value) => command.env("ORT_DISABLE_TELEMETRY", value),
            None => command.env_remove("ORT_DISABLE_TELEMETRY"),
        };
        let output = command.output().unwrap();
        json(&String::from_utf8(output.stdout).unwrap())["telemetry"].as_bool().unwrap()
    };
    assert_eq!([None, Some("1"), Some("true"), Some("0"), Some("")].map(telemetry), [false, false, false, true, true]);
}

/// Otherwise, whoever can write to the current folder could choose the code that runs.
#[test]
fn a_library_in_the_current_folder_is_not_loaded() {
    let folder = folder();
    let library = folder.path().join(".deps/onnxruntime/lib/libonnxruntime.so");
    fs::create_dir_all(library.parent().unwrap()).unwrap();
    fs::write(&library, "loading this would fail, and name it").unwrap();
    let below = folder.path().join("below");
    for current in [folder.path(), &below] {
        // A copy of the program outside the checkout, whose `.deps` it would find.
        let elsewhere = tempfile::tempdir().unwrap();
        let program = elsewhere.path().join("runtime");
        fs::copy(env!("CARGO_BIN_EXE_runtime"), &program).unwrap();
        let mut command = Command::new(&program);
        let output = command.arg("doctor").current_dir(current).env_remove("ORT_DYLIB_PATH").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(!text.contains(&library.display().to_string()), "{text}");
    }
}
