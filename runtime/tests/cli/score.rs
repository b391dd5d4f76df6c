//! `runtime score`.

use std::fs;

use crate::fixture::{program, run};

#[test]
fn score_prints_tables_or_json() {
    let folder = tempfile::tempdir().unwrap();
    let truth = r#"{"images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 100}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [10, 10, 40, 40]}],
        "categories": [{"id": 3, "name": "cell"}, {"id": 5, "name": "speck"}]}"#;
    let detections = r#"[{"image_id": 1, "category_id": 5, "bbox": [10, 10, 40, 40], "score": 0.9}]"#;
    fs::write(folder.path().join("t.json"), truth).unwrap();
    fs::write(folder.path().join("d.json"), detections).unwrap();
    let arguments = ["score", "--truth", "t.json", "--detections", "d.json"];

    let (code, stdout, stderr) = run(program(&folder).args(arguments));
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(stdout.contains("AP50 ") && stdout.contains("\ncell ") && stdout.contains("\nspeck "), "{stdout}");
    assert!(!stdout.contains("VOC") && !stdout.contains("background"), "{stdout}");

    let (code, stdout, _) = run(program(&folder).args(arguments).args(["--confusion", "--voc-iou"]));
    assert_eq!(code, 0);
    assert!(stdout.contains("VOC at IoU 0.5: AP 0.0000") && stdout.contains("\nbackground "), "{stdout}");

    let (code, stdout, _) = run(program(&folder).args(arguments).args(["--json", "-"]));
    assert_eq!((code, stdout.lines().next(), stdout.lines().nth(1)), (0, Some("{"), Some("  \"AP\": 0.0,")));
}

#[test]
fn score_reports_missing_files() {
    let folder = tempfile::tempdir().unwrap();
    let (code, _, stderr) = run(program(&folder).args(["score", "--truth", "t.json", "--detections", "d.json"]));
    assert_eq!(code, 1);
    assert!(stderr.contains("t.json"), "{stderr}");
}

#[test]
fn score_reads_stdin() {
    let folder = tempfile::tempdir().unwrap();
    let truth = r#"{"images": [{"id": 1, "file_name": "a.png", "width": 9, "height": 9}], "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4]}]}"#;
    fs::write(folder.path().join("truth.json"), truth).unwrap();
    let detections = r#"[{"image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "score": 0.9}]"#;
    fs::write(folder.path().join("detections.json"), detections).unwrap();
    for (file, truth, detections) in [("truth", "-", "detections.json"), ("detections", "truth.json", "-")] {
        let stdin = fs::File::open(folder.path().join(format!("{file}.json"))).unwrap();
        let mut command = program(&folder);
        command.args(["score", "--truth", truth, "--detections", detections, "--json", "-"]);
        let output = command.stdin(stdin).output().unwrap();
        let numbers: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(numbers["AP"].as_f64().unwrap() > 0.999);
    }
}

#[test]
fn score_joins_the_files_of_shards() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    let image = |id| format!(r#"{{"id": {id}, "file_name": "{id}.png", "width": 9, "height": 9}}"#);
    let object = |id| format!(r#"{{"id": {id}, "image_id": {id}, "category_id": 3, "bbox": [1, 1, 4, 4]}}"#);
    let list = |entry: &dyn Fn(u32) -> String| (1..=4).map(entry).collect::<Vec<_>>().join(",");
    let (images, annotations) = (list(&image), list(&object));
    let categories = r#"[{"id": 3, "name": "cell"}]"#;
    write(
        "truth.json",
        &format!(r#"{{"images": [{images}], "annotations": [{annotations}], "categories": {categories}}}"#),
    );
    write("1.json", r#"[{"image_id": 1, "category_id": 3, "bbox": [1, 1, 4, 4], "score": 0.9}]"#);
    let detected = |id: u32| {
        format!(
            r#"{{"file":"b/{id}.png","width":9,"height":9,"detections":[{{"label":"cell","category_id":3,"score":0.8,"box":[1.0,1.0,5.0,5.0]}}]}}"#
        )
    };
    write("2.ndjson", &format!("{}\n{{\"file\":\"3.png\",\"error\":\"broken\"}}\n", detected(2)));
    write("4.json", &format!("[\n{}\n]\n", detected(4)));
    let score = |files: &[&str]| {
        run(program(&folder).args(["score", "--truth", "truth.json", "--json", "-", "--detections"]).args(files))
    };
    let (code, stdout, stderr) = score(&["1.json", "2.ndjson", "4.json"]);
    assert!(code == 0 && stderr.contains("1 of the 2 images in `2.ndjson` failed"), "{stderr}");
    let numbers: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(numbers["AR100"].as_f64(), Some(0.75));

    write("again.ndjson", &format!("{}\n{}\n", detected(4), detected(4)));
    write("other.ndjson", "{\"file\":\"7.png\",\"detections\":[]}\n");
    write("cut.ndjson", "{\"file\":\"1.png\",\"detec");
    write("frames.ndjson", "{\"file\":\"clip.mp4\",\"frame\":1,\"detections\":[]}\n");
    write("twice.json", r#"[{"image_id": 4, "category_id": 3, "bbox": [1, 1, 4, 4], "score": 0.9}]"#);
    for (files, parts) in [
        (&["4.json", "twice.json"][..], &["image `4.png` (id 4) is in both `4.json` and `twice.json`"][..]),
        (&["again.ndjson"], &["`b/4.png` is twice in `again.ndjson`"]),
        (&["other.ndjson"], &["`7.png` in `other.ndjson` is no image of the ground truth"]),
        (&["cut.ndjson"], &["cannot read `cut.ndjson`", "--skip-existing", "line 1"]),
        (&["frames.ndjson"], &["`clip.mp4` in `frames.ndjson`", "frames of a video have no image ids"]),
    ] {
        let (code, _, stderr) = score(files);
        assert!(code == 1 && parts.iter().all(|part| stderr.contains(part)), "{stderr}");
    }
}
