//! `runtime detect`: result files, thresholds and messages.

use std::io::Write;
use std::process::Stdio;

use serde_json::Value;

use crate::fixture::{detect, folder, json, list, read, run, runtime};

#[test]
fn all_output_formats_contain_the_same_results() {
    let folder = folder();
    let lists = ["--json", "a.json", "--ndjson", "a.ndjson", "--csv", "a.csv", "--coco", "a.coco"];
    let folders = ["--draw", "drawn", "--yolo", "yolo", "--crops", "crops", "--max-detections", "7"];
    let (code, stdout, stderr) = run(detect(&folder).args(["1.png", "2.png", "3.jpg"]).args(lists).args(folders));
    assert_eq!((code, stdout.as_str()), (3, ""), "{stderr}");
    assert!(stderr.contains("`2.png`: not a JPEG, PNG") && stderr.contains("failed: 1, detections: 14"));

    let images = json(&read(&folder, "a.json"));
    assert_eq!(images.as_array().unwrap().len(), 3);
    let lines: Vec<_> = read(&folder, "a.ndjson").lines().map(json).collect();
    assert_eq!(Value::from(lines), images);
    let found = images[2]["detections"].as_array().unwrap();
    assert_eq!((found.len(), &images[2]["width"]), (7, &Value::from(60)));
    let csv = read(&folder, "a.csv");
    assert_eq!(csv.lines().filter(|line| line.starts_with("3.jpg,")).count(), 7);
    let coco = json(&read(&folder, "a.coco"));
    let of_third: Vec<_> = coco.as_array().unwrap().iter().filter(|entry| entry["image_id"] == 3).collect();
    assert_eq!(of_third.len(), 7);
    assert_eq!((&of_third[0]["score"], &of_third[0]["bbox"][0]), (&found[0]["score"], &found[0]["box"][0]));

    assert_eq!(list(&folder.path().join("drawn")), ["1.png", "3.jpg"]);
    assert_eq!(list(&folder.path().join("yolo")), ["1.txt", "3.txt", "data.yaml"]);
    let labels = read(&folder, "yolo/3.txt");
    assert_eq!(labels.lines().map(|line| line.split(' ').count()).collect::<Vec<_>>(), [5; 7]);
    assert!(read(&folder, "yolo/data.yaml").ends_with("names:\n  0: \"cat\"\n  1: \"a/b\"\n"));
    let crops: usize = ["cat", "a_b"]
        .map(|class| folder.path().join("crops").join(class))
        .iter()
        .map(|folder| if folder.exists() { list(folder).len() } else { 0 })
        .sum();
    assert_eq!(crops, 14);
}

#[test]
fn results_do_not_depend_on_the_batch_size_except_for_rounding() {
    let folder = folder();
    let boxes = |arguments: &[&str]| -> Vec<f64> {
        let (code, stdout, stderr) =
            run(detect(&folder).args(["--json", "-", "1.png", "3.jpg", "1.png"]).args(arguments));
        assert_eq!(code, 0, "{stderr}");
        let images = json(&stdout);
        let detections = images.as_array().unwrap().iter().flat_map(|image| image["detections"].as_array().unwrap());
        detections.flat_map(|detection| detection["box"].as_array().unwrap()).map(|x| x.as_f64().unwrap()).collect()
    };
    let (one, three) = (boxes(&["--batch-size", "1"]), boxes(&["--batch-size", "3", "--workers", "1"]));
    assert_eq!(one.len(), three.len());
    assert!(one.iter().zip(&three).all(|(a, b)| (a - b).abs() < 0.01));
}

#[test]
fn thresholds_classes_and_views_are_applied() {
    let folder = folder();
    let labels = |arguments: &[&str]| -> Vec<String> {
        let (code, stdout, stderr) = run(detect(&folder).args(["--json", "-", "1.png"]).args(arguments));
        assert_eq!(code, 0, "{stderr}");
        let images = json(&stdout);
        let found = images[0]["detections"].as_array().unwrap();
        found.iter().map(|detection| detection["label"].as_str().unwrap().to_owned()).collect()
    };
    let all = labels(&[]);
    assert!(all.contains(&"cat".to_owned()) && all.contains(&"a/b".to_owned()));
    assert!(labels(&["--classes", "9"]).iter().all(|label| label == "a/b"));
    assert!(labels(&["--class-agnostic"]).len() < all.len());
    assert!(labels(&["--nms-iou", "0.9"]).len() > all.len());
    assert!(labels(&["--min-score", "0.9"]).len() < all.len());
    assert!(labels(&["--top-k", "1"]).len() <= 5);
    assert_ne!(labels(&["--soft-nms", "0.3"]), all);
    assert!(labels(&["--tile", "48", "--tile-overlap", "0.3", "--flip"]).len() > all.len());
    for (arguments, reason) in
        [(["--classes", "dog"], "no class `dog`; its classes are `cat`, `a/b`"), (["--image-ids", "x"], "--coco")]
    {
        let (_, stdout, stderr) = run(detect(&folder).arg("1.png").args(arguments));
        assert!(stdout.is_empty() && stderr.contains(reason), "{stderr}");
    }
}

#[test]
fn recursive_and_size_limits_are_applied() {
    let folder = folder();
    let files = |arguments: &[&str]| -> Vec<(String, bool)> {
        let (_, stdout, _) = run(detect(&folder).args(["--ndjson", "-", "."]).args(arguments));
        let file = |line: Value| (line["file"].as_str().unwrap().to_owned(), line["error"].is_null());
        stdout.lines().map(json).map(file).collect()
    };
    let expected =
        [("./1.png", true), ("./2.png", false), ("./3.jpg", true)].map(|(file, fine)| (file.to_owned(), fine));
    assert_eq!(files(&[]), expected);
    assert_eq!(files(&["--recursive"])[3], ("./below/4.png".to_owned(), true));
    assert_eq!(
        files(&["--max-pixels", "5000"])[..],
        [("./1.png".to_owned(), false), expected[1].clone(), expected[2].clone()]
    );
    assert!(files(&["--max-bytes", "20"]).iter().all(|(_, fine)| !fine));
}

#[test]
fn missing_image_ids_are_errors_before_the_work_starts_and_per_image_with_stdin() {
    let folder = folder();
    std::fs::copy(folder.path().join("1.png"), folder.path().join("cat.png")).unwrap();
    for (files, reason) in [
        (["1.png", "cat.png"], "`cat.png`: the file name is not a number"),
        (["1.png", "01.png"], "`01.png`: its image id 1 is already used by an earlier image"),
    ] {
        let (code, _, stderr) = run(detect(&folder).args(["--coco", "a.coco"]).args(files));
        assert!(code == 1 && stderr.contains(reason), "{stderr}");
    }
    let mut child = detect(&folder);
    let mut child =
        child.args(["--stdin", "--coco", "a.coco"]).stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"1.png\ncat.png\n1.png\n3.jpg\n").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3));
    let results = json(&read(&folder, "a.coco"));
    let mut ids: Vec<_> = results.as_array().unwrap().iter().map(|entry| entry["image_id"].as_i64().unwrap()).collect();
    ids.dedup();
    assert_eq!(ids, [1, 3]);
}

#[test]
fn an_image_from_stdin_has_the_same_detections() {
    let folder = folder();
    let detections = |path: &str| {
        let image = std::fs::File::open(folder.path().join("1.png")).unwrap();
        let (code, stdout, stderr) = run(detect(&folder).args(["--json", "-", path]).stdin(image));
        assert_eq!(code, 0, "{stderr}");
        json(&stdout)[0]["detections"].clone()
    };
    assert_eq!(detections("-"), detections("1.png"));
}

#[test]
fn long_names_do_not_end_the_run() {
    let folder = folder();
    let (image, json_file) = ("x".repeat(251) + ".png", "y".repeat(250) + ".json");
    std::fs::copy(folder.path().join("1.png"), folder.path().join(&image)).unwrap();
    let outputs = ["--draw", "drawn", "--yolo", "yolo", "--crops", "crops", "--max-detections", "2"];
    let (code, _, stderr) = run(detect(&folder).args(["--json", &json_file[..240], &image, "3.jpg"]).args(outputs));
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(json(&read(&folder, &json_file[..240]))[0]["file"], image.as_str());
    for (output, extension) in [("drawn", ".png"), ("yolo", ".txt")] {
        let names: Vec<_> = list(&folder.path().join(output)).into_iter().filter(|name| name != "data.yaml").collect();
        assert!(names.len() == 2 && names[1].starts_with("xxx") && names[1].ends_with(extension), "{names:?}");
    }
    let crops = ["cat", "a_b"].map(|class| folder.path().join("crops").join(class));
    let crops: Vec<_> = crops.iter().filter(|folder| folder.exists()).flat_map(|folder| list(folder)).collect();
    assert_eq!(crops.iter().filter(|name| name.starts_with("xxx")).count(), 2, "{crops:?}");
}

#[test]
fn labels_that_exist_are_not_overwritten() {
    let folder = folder();
    std::fs::create_dir(folder.path().join("labels")).unwrap();
    std::fs::write(folder.path().join("labels/3.txt"), "by hand").unwrap();
    let (code, _, stderr) = run(detect(&folder).args(["--yolo", "labels", "1.png", "3.jpg"]));
    assert!(code == 1 && stderr.contains("labels/3.txt` exists already") && stderr.contains("--yolo"), "{stderr}");
    assert_eq!(list(&folder.path().join("labels")), ["3.txt"]);
    let mut child = detect(&folder);
    child.args(["--yolo", "labels", "--stdin", "--json", "a.json"]).stdin(Stdio::piped()).stderr(Stdio::null());
    let mut child = child.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"1.png\n3.jpg\n").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3));
    assert!(json(&read(&folder, "a.json"))[1]["error"].as_str().unwrap().contains("exists already"));
    assert_eq!(read(&folder, "labels/3.txt"), "by hand");
    assert!(folder.path().join("labels/1.txt").exists());
}

#[test]
fn quiet_prints_errors_only_and_verbose_also_the_library() {
    let folder = folder();
    let stderr = |flag: &str| run(detect(&folder).args([flag, "1.png", "missing.png"])).2;
    assert_eq!(stderr("--quiet"), "error: `missing.png`: No such file or directory (os error 2)\n");
    let verbose = stderr("-v");
    for part in
        ["library: ONNX Runtime 1.", "model: `", "provider: cpu", "thresholds: score 0.", "images: 2, failed: 1"]
    {
        assert!(verbose.contains(part), "{verbose}");
    }
    let (code, _, stderr) = run(runtime(&folder, "detect").args(["-q", "-v", "1.png"]));
    assert!(code == 2 && stderr.contains("cannot be used with"), "{stderr}");
}

#[test]
fn the_log_is_text_or_json_and_as_verbose_as_wanted() {
    let folder = folder();
    let stderr = |arguments: &[&str]| {
        let (code, _, stderr) = run(detect(&folder).args(arguments).args(["--draw", "drawn", "1.png", "2.png"]));
        assert_eq!(code, 3, "{stderr}");
        stderr
    };
    let lines = |arguments: &[&str]| stderr(arguments).lines().map(json).collect::<Vec<_>>();
    let (quiet, normal) = (stderr(&["-q"]), stderr(&[]));
    assert!(quiet.lines().count() == 1 && quiet.starts_with("error: `2.png`: not a JPEG"), "{quiet}");
    assert!(normal.lines().count() == 2 && normal.contains("images: 2, failed: 1"), "{normal}");
    assert!(stderr(&["-v"]).contains("\nmodel: `"));

    let normal = lines(&["--log-format", "json"]);
    assert!(normal.len() == 2 && normal[0]["level"] == "ERROR" && normal[0]["target"] == "messages", "{normal:?}");
    assert!(normal[0]["message"].as_str().unwrap().starts_with("`2.png`: not a JPEG"), "{normal:?}");
    assert!(normal[1]["level"] == "INFO" && normal[1]["timestamp"].is_string(), "{normal:?}");

    let stages = lines(&["-vv", "--log-format", "json"]);
    for stage in ["decode", "prepare", "queue", "infer", "postprocess", "write"] {
        let ends = |line: &&Value| line["message"] == "close" && line["span"]["name"] == stage;
        let line = stages.iter().find(ends).unwrap_or_else(|| panic!("no {stage} in {stages:?}"));
        assert!(line["time.busy"].is_string(), "{line}");
    }
    assert!(stderr(&["-vv"]).lines().any(|line| line.contains("decode: close time.busy=")));
    assert!(lines(&["-vvv", "--log-format", "json"]).iter().any(|line| line["target"] == "onnxruntime"));
}
