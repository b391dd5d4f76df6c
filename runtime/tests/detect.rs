//! `runtime detect`, `bench` and `info` with a model: outputs, stdin mode, interrupts and errors.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]
#![allow(dead_code, reason = "not every test uses all of the fixture")]

mod fixture;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

#[cfg(target_os = "linux")]
use fixture::peak_memory;
use fixture::{detect, folder, json, list, read, run, runtime};

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

/// Starts `runtime detect --stdin` with piped stdin, stdout and stderr.
fn start_with_stdin(folder: &TempDir) -> Child {
    let pipes = |command: &mut Command| {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    pipes(detect(folder).arg("--stdin"))
}

#[test]
fn with_stdin_each_line_gets_its_result_at_once_and_bad_lines_are_errors() {
    let folder = folder();
    let mut child = start_with_stdin(&folder);
    let mut stdin = child.stdin.take().unwrap();
    let mut results = BufReader::new(child.stdout.take().unwrap()).lines();
    let long = "x".repeat(40_000);
    for (line, error) in [
        ("1.png", None),
        ("missing.png", Some("No such file")),
        (long.as_str(), Some("line 3 is longer")),
        ("below", Some("directory")),
        ("2.png", Some("not a JPEG")),
        ("3.jpg", None),
    ] {
        writeln!(stdin, "{line}").unwrap();
        let result = json(&results.next().unwrap().unwrap());
        match error {
            None => assert_eq!(result["file"], line),
            Some(error) => assert!(result["error"].as_str().unwrap().contains(error), "{result}"),
        }
    }
    drop(stdin);
    assert!(results.next().is_none());
    assert_eq!(child.wait().unwrap().code(), Some(3));
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
fn with_stdin_a_closed_stdout_ends_the_program() {
    let folder = folder();
    let mut child = start_with_stdin(&folder);
    let mut stdin = child.stdin.take().unwrap();
    drop(child.stdout.take());
    writeln!(stdin, "1.png").unwrap();
    // Ends although its stdin stays open.
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[cfg(unix)]
#[test]
fn an_interrupt_writes_no_result_files() {
    let folder = folder();
    let mut command = detect(&folder);
    command.args(["--stdin", "--json", "a.json", "--ndjson", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut results = BufReader::new(child.stdout.take().unwrap()).lines();
    writeln!(stdin, "1.png").unwrap();
    assert_eq!(json(&results.next().unwrap().unwrap())["file"], "1.png");
    let killed = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(String::from_utf8(output.stderr).unwrap().contains("result files are not written"));
    assert_eq!(list(folder.path()), ["1.png", "2.png", "3.jpg", "below"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error() {
    let folder = folder();
    for option in ["--json", "--csv"] {
        let (code, _, stderr) = run(detect(&folder).args([option, "/dev/full", "1.png"]));
        assert_eq!(code, 1);
        assert!(stderr.contains("cannot write `/dev/full`: No space left"), "{stderr}");
    }
}

#[test]
fn bench_reports_every_stage_and_its_setup() {
    let folder = folder();
    let arguments = ["--runs", "2", "--warm-up", "0", "--batch-sizes", "1,2", "--json", "-", "1.png", "3.jpg"];
    let (code, stdout, stderr) = run(runtime(&folder, "bench").args(arguments));
    assert_eq!(code, 0, "{stderr}");
    let numbers = json(&stdout);
    assert_eq!(numbers["setup"]["model_sha256"].as_str().unwrap().len(), 64);
    assert_eq!((&numbers["setup"]["input"][0], &numbers["setup"]["input"][1]), (&64.into(), &96.into()));
    for stage in ["read", "preprocess", "network", "postprocess"] {
        let times = &numbers["stages"][stage];
        let [p50, p99] = ["p50", "p99"].map(|name| times[name].as_f64().unwrap());
        assert!(0.0 < p50 && p50 <= p99, "{stage}: {times}");
    }
    let speeds = numbers["throughput"].as_array().unwrap();
    assert_eq!(speeds.len(), 2);
    assert!(speeds.iter().all(|speed| speed["images_per_second"].as_f64().unwrap() > 0.0));
    assert!(numbers["start"]["total_ms"].as_f64() > numbers["start"]["session_ms"].as_f64());
    let (_, table, _) = run(runtime(&folder, "bench").args(["--runs", "1", "--size", "64x48"]));
    for part in ["first detection after", "postprocess", "images/s", "SHA-256"] {
        assert!(table.contains(part), "{table}");
    }
}

#[test]
fn info_describes_a_file() {
    let folder = folder();
    let (code, text, stderr) = run(&mut runtime(&folder, "info"));
    assert_eq!(code, 0, "{stderr}");
    for part in [
        "SHA-256",
        "RetinaNet with ResNet-18",
        "any number of images",
        "shorter_side: 64",
        "retinanet.program: a test",
        "a/b",
    ] {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
    let (_, text, _) = run(runtime(&folder, "info").args(["--json", "-"]));
    let info = json(&text);
    assert_eq!(info["spec"]["classes"][1]["id"], 9);
    assert_eq!(info["outputs"][0]["shape"], serde_json::json!([null, null, 2]));
    assert_eq!((&info["batch"], &info["metadata"]["retinanet.program"]), (&Value::Null, &Value::from("a test")));
    // A ResNet-18 with 80 classes has 21,400,500 parameters beside its frozen norms, of which 9 * (256 * 9 + 1) per class.
    assert_eq!(info["parameters"], 21_400_500 - 78 * 9 * 2305);
}

#[test]
fn auto_uses_the_first_provider_that_works_and_reports_it() {
    let folder = folder();
    let (code, _, stderr) = run(detect(&folder).args(["--provider", "auto", "1.png"]));
    assert_eq!(code, 0, "{stderr}");
    // With a GPU or OpenVINO, `auto` does not use the CPU.
    assert!(stderr.starts_with("auto: "), "{stderr}");
    assert_eq!(stderr.contains("auto: using cpu"), stderr.contains("auto: skipped openvino:cpu: "), "{stderr}");
}

#[test]
fn a_separate_thread_pool_does_not_change_results() {
    let folder = folder();
    let found = |arguments: &[&str]| run(detect(&folder).args(["--json", "-", "1.png"]).args(arguments)).1;
    let expected = found(&[]);
    assert!(expected.contains("cat"));
    assert_eq!(found(&["--threads", "2", "--affinity", "0"]), expected);
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
fn jobs_of_an_array_share_the_images() {
    let folder = folder();
    let mut files = Vec::new();
    for (index, shard) in ["0/2", "auto/2"].into_iter().enumerate() {
        let mut command = detect(&folder);
        command.env_remove("SLURM_ARRAY_TASK_ID").env("JOB_COMPLETION_INDEX", "1");
        let (code, stdout, stderr) = run(command.args(["--shard", shard, "--json", "-", "1.png", "2.png", "3.jpg"]));
        // The first job has the images 1 and 3, the second the broken one.
        assert_eq!(code, [0, 3][index], "{stderr}");
        files.extend(json(&stdout).as_array().unwrap().iter().map(|image| image["file"].as_str().unwrap().to_owned()));
    }
    assert_eq!(files, ["1.png", "3.jpg", "2.png"]);

    let (code, stdout, _) = run(detect(&folder).args(["--ignore-failures", "--json", "-", "1.png", "2.png"]));
    assert!(code == 0 && json(&stdout)[1]["error"].is_string(), "{stdout}");
    let mut child = detect(&folder);
    child.args(["--shard", "1/2", "--stdin"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = child.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"1.png\n3.jpg\n1.png\n").unwrap();
    let output = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    assert!(output.lines().count() == 1 && json(&output)["file"] == "3.jpg", "{output}");
    let (code, _, stderr) = run(detect(&folder).args(["--shard", "2/2", "1.png"]));
    assert!(code == 2 && stderr.contains("I from 0 to N - 1"), "{stderr}");
}

#[test]
fn a_second_run_skips_what_the_first_has_done() {
    let folder = folder();
    let outputs = ["--ndjson", "a.ndjson", "--yolo", "labels", "--draw", "drawn"];
    let (code, _, stderr) = run(detect(&folder).args(outputs).args(["1.png", "2.png", "3.jpg", "1.png"]));
    assert_eq!(code, 3, "{stderr}");
    let whole = read(&folder, "a.ndjson");
    // As if the program had been killed in the third line.
    let third: usize = whole.lines().take(2).map(|line| line.len() + 1).sum();
    std::fs::write(folder.path().join("a.ndjson"), &whole[..third + 30]).unwrap();
    std::fs::remove_file(folder.path().join("labels/3.txt")).unwrap();
    std::fs::write(folder.path().join("labels/1-2.txt"), "kept").unwrap();

    let mut second = detect(&folder);
    second.args(outputs).args(["--skip-existing", "1.png", "2.png", "3.jpg", "1.png"]);
    let (code, _, stderr) = run(&mut second);
    assert!(code == 0 && stderr.contains("images: 2, skipped: 2, failed: 0"), "{stderr}");
    assert_eq!(read(&folder, "a.ndjson"), whole);
    assert!(folder.path().join("labels/3.txt").exists());
    assert_eq!(read(&folder, "labels/1-2.txt"), "kept");
    let (code, _, stderr) = run(&mut second);
    assert!(code == 0 && stderr.contains("images: 0, skipped: 4"), "{stderr}");
    assert_eq!(read(&folder, "a.ndjson"), whole);

    // Without a list, the files decide.
    std::fs::remove_file(folder.path().join("drawn/3.jpg")).unwrap();
    let mut child = detect(&folder);
    child
        .args(["--skip-existing", "--yolo", "labels", "--draw", "drawn", "--stdin"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = child.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"1.png\n3.jpg\nclip.mp4\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(3) && stderr.contains("images: 2, skipped: 1, failed: 1"), "{stderr}");
    assert!(stderr.contains("`clip.mp4`: it is a video, which --skip-existing cannot continue"), "{stderr}");
    assert!(folder.path().join("drawn/3.jpg").exists());

    for (arguments, message) in [
        (&["--ndjson", "-"][..], "--skip-existing needs a file for --ndjson"),
        (&["--json", "a.json"], "cannot be used with '--json <FILE>'"),
        (&["--draw", "drawn", "--crops", "crops"], "cannot be used with '--crops <DIR>'"),
        (&[], "--skip-existing needs --ndjson, --draw or --yolo"),
    ] {
        let (code, _, stderr) = run(detect(&folder).arg("--skip-existing").args(arguments).arg("1.png"));
        assert!(code == 2 && stderr.contains(message), "{stderr}");
    }
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
fn auto_ignores_options_of_cuda_on_other_providers() {
    let folder = folder();
    let doctor = json(&run(fixture::program(&folder).args(["doctor", "--json", "-"])).1);
    if doctor["providers"][1]["error"].is_null() {
        eprintln!("skipped: this machine has CUDA");
        return;
    }
    let options = ["--provider", "auto", "--cuda-graphs", "--cuda-memory", "100", "--no-tf32", "1.png"];
    let (code, _, stderr) = run(detect(&folder).args(options));
    assert_eq!(code, 0, "{stderr}");
}

#[cfg(target_os = "linux")]
#[test]
fn images_in_memory_have_no_more_pixels_than_an_image_may_have() {
    let folder = folder();
    // 18 MB each.
    let images: Vec<_> = (0..10).map(|number| format!("large-{number}.bmp")).collect();
    image::RgbImage::new(3000, 2000).save(folder.path().join(&images[0])).unwrap();
    images[1..]
        .iter()
        .for_each(|name| drop(std::fs::hard_link(folder.path().join(&images[0]), folder.path().join(name))));
    let peak = |max_pixels: &str| {
        let options = ["--workers", "10", "--draw", "drawn", "--max-pixels", max_pixels];
        let mut command = detect(&folder);
        command.args(options).args(&images);
        peak_memory(command)
    };
    let (one, all) = (peak("6000000"), peak("60000000"));
    assert!(one + 80 < all, "{one} MiB with one image in memory, {all} MiB with ten");
}

/// The control group `name` of this kernel with a quota of one core, if this machine lets tests create one.
#[cfg(target_os = "linux")]
fn control_group(name: &str) -> Option<std::path::PathBuf> {
    let set = |folder: std::path::PathBuf, files: &[(&str, &str)]| {
        std::fs::create_dir(&folder).ok()?;
        let written = files.iter().all(|(file, text)| {
            // A controller that is not enabled has no such file.
            folder.join(file).exists() && std::fs::write(folder.join(file), text).is_ok()
        });
        if !written {
            std::fs::remove_dir(&folder).unwrap();
        }
        written.then_some(folder)
    };
    let root = std::path::Path::new("/sys/fs/cgroup");
    let first = set(root.join("cpu").join(name), &[("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "100000")]);
    first.or_else(|| set(root.join(name), &[("cpu.max", "100000 100000")]))
}

#[cfg(target_os = "linux")]
#[test]
fn the_quota_of_a_control_group_limits_threads() {
    let Some(group) = control_group(&format!("retinanet-{}", std::process::id())) else {
        eprintln!("skipped: cannot create a control group");
        return;
    };
    let folder = folder();
    let detect = detect(&folder);
    let threads = |prefix: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{prefix} exec \"$0\" \"$@\"")]).current_dir(folder.path());
        command.arg(detect.get_program()).args(detect.get_args()).args(["-v", "--workers", "1", "--stdin"]);
        command.envs(detect.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        writeln!(stdin, "1.png").unwrap();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
        let count = std::fs::read_dir(format!("/proc/{}/task", child.id())).unwrap().count();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        (count, String::from_utf8(output.stderr).unwrap())
    };
    let join = format!("echo $$ > {}/cgroup.procs;", group.display());
    let ((all, _), (limited, details)) = (threads(""), threads(&join));
    std::fs::remove_dir(&group).unwrap();
    assert!(details.contains("provider: cpu, 1 CPU threads"), "{details}");
    // ONNX Runtime's pool has one thread fewer than it uses cores, since the caller computes too.
    let cores = std::thread::available_parallelism().unwrap().get();
    assert!(cores == 1 || limited < all, "{limited} threads with a quota of one core, {all} on {cores} cores");
}

#[cfg(target_os = "linux")]
#[test]
fn only_lists_wait_for_the_disk() {
    let folder = folder();
    let detect = detect(&folder);
    let mut command = Command::new("strace");
    command.current_dir(folder.path()).args(["-f", "-qq", "-e", "trace=fsync,fdatasync", "-o", "trace"]);
    command.arg(detect.get_program()).args(detect.get_args());
    command.envs(detect.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.args(["--json", "a.json", "--draw", "drawn", "--crops", "crops", "--yolo", "yolo", "1.png", "3.jpg"]);
    match command.output() {
        // The list, and the name of the list in its folder.
        Ok(output) if output.status.code() == Some(0) => assert_eq!(read(&folder, "trace").matches("sync(").count(), 2),
        _ => eprintln!("skipped: strace is missing or not allowed"),
    }
}
