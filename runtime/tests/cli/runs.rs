//! Runs of `runtime detect` that are fed by stdin, shared by jobs, interrupted or continued.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use crate::fixture::{detect, folder, json, list, piped, read, run};

#[test]
fn with_stdin_each_line_gets_its_result_at_once_and_bad_lines_are_errors() {
    let folder = folder();
    let mut child = piped(detect(&folder).arg("--stdin"));
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
fn with_stdin_a_closed_stdout_ends_the_program() {
    let folder = folder();
    let mut child = piped(detect(&folder).arg("--stdin"));
    let mut stdin = child.stdin.take().unwrap();
    drop(child.stdout.take());
    writeln!(stdin, "1.png").unwrap();
    // Ends although its stdin stays open.
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn an_interrupt_writes_no_result_files() {
    let folder = folder();
    let mut child = piped(detect(&folder).args(["--stdin", "--json", "a.json", "--ndjson", "-"]));
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

    // Both name their files as a single job would.
    std::fs::create_dir(folder.path().join("other")).unwrap();
    std::fs::copy(folder.path().join("1.png"), folder.path().join("other/1.png")).unwrap();
    let outputs = ["--draw", "drawn", "--yolo", "labels", "--crops", "crops", "--min-score", "0"];
    for shard in ["0/2", "1/2"] {
        let mut command = detect(&folder);
        let (code, _, stderr) = run(command.args(outputs).args(["--shard", shard, "1.png", "other/1.png"]));
        assert_eq!(code, 0, "{stderr}");
        assert_eq!(list(&folder.path().join("drawn")).len(), if shard == "0/2" { 1 } else { 2 });
    }
    assert_eq!(list(&folder.path().join("drawn")), ["1-2.png", "1.png"]);
    assert_eq!(list(&folder.path().join("labels")), ["1-2.txt", "1.txt", "data.yaml"]);

    // Nor do they write two images under one id.
    for (shard, expected) in [("0/2", 0), ("1/2", 1)] {
        let mut command = detect(&folder);
        let (code, _, stderr) = run(command.args(["--shard", shard, "--coco", "a.coco", "1.png", "other/1.png"]));
        assert!(code == expected && stderr.contains("image id 1 is already used") == (code == 1), "{stderr}");
    }

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
