//! Signals: what `runtime` finishes, what it keeps, and that it leaves no temporary files.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::fixture::{detect, folder, json, list, piped, program, read, runtime};

/// Waits until `is_done` returns true.
fn wait_until(what: &str, is_done: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_done() {
        assert!(start.elapsed() < Duration::from_secs(60), "waited too long: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn signal(name: &str, child: &Child) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

/// Waits for the end of a program; its exit code, and what is left on its stderr.
fn end(mut child: Child) -> (Option<i32>, String) {
    // Stays open: the end of stdin would end some programs before they have handled the signal.
    let _stdin = child.stdin.take();
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("the program did not end");
        }
        thread::sleep(Duration::from_millis(1));
    }
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// Whether a temporary file of an output is in the folder.
fn has_partial_file(folder: &Path) -> bool {
    list(folder).iter().any(|name| name.ends_with(".partial"))
}

#[test]
fn an_early_signal_leaves_no_temporary_files() {
    let folder = folder();
    let truth = r#"{"images": [{"id": 1, "file_name": "1.png", "width": 90, "height": 60}], "annotations": [],
        "categories": [{"id": 7, "name": "cat"}]}"#;
    fs::write(folder.path().join("truth.json"), truth).unwrap();
    let temporary = folder.path().join("temporary");
    fs::create_dir(&temporary).unwrap();
    let before = list(folder.path());
    let mut score = program(&folder);
    // Waits for the ground truth on stdin.
    score.args(["score", "--truth", "-", "--detections", "x.json"]);
    let mut commands = [detect(&folder), runtime(&folder, "bench"), runtime(&folder, "eval"), score];
    commands[0].args(["--stdin", "--csv", "b.csv"]);
    commands[1].args(["--runs", "100000"]);
    commands[2].args(["--data", "truth.json"]);
    for command in &mut commands {
        let child = piped(command.args(["--json", "a.json"]).env("TMPDIR", &temporary));
        wait_until("the outputs open", || has_partial_file(folder.path()));
        signal("-TERM", &child);
        let (code, stderr) = end(child);
        assert_eq!(code, Some(130), "{command:?}: {stderr}");
        assert_eq!((list(folder.path()), list(&temporary)), (before.clone(), Vec::new()), "{command:?}");
    }
}

/// Starts `detect --stdin` and lets it process an image. Returns it, a function that processes another image, and its stdin.
fn start(folder: &TempDir, mut command: Command) -> (Child, impl Fn(&mut ChildStdin, &str), ChildStdin) {
    let mut child = piped(command.args(["--stdin", "--json", "a.json", "--ndjson", "a.ndjson"]));
    let path = folder.path().join("a.ndjson");
    let process = move |stdin: &mut ChildStdin, name: &str| {
        let lines = || fs::read_to_string(&path).unwrap_or_default().lines().count();
        let before = lines();
        writeln!(stdin, "{name}").unwrap();
        wait_until("the next line of NDJSON", || lines() > before);
    };
    let mut stdin = child.stdin.take().unwrap();
    process(&mut stdin, "1.png");
    (child, process, stdin)
}

#[test]
fn ndjson_can_be_read_as_it_grows_and_survives_an_interrupt() {
    let folder = folder();
    let (child, process, mut stdin) = start(&folder, detect(&folder));
    process(&mut stdin, "3.jpg");
    assert!(!folder.path().join("a.json").exists());
    signal("-TERM", &child);
    assert_eq!(end(child).0, Some(130));
    let files: Vec<_> = read(&folder, "a.ndjson").lines().map(|line| json(line)["file"].clone()).collect();
    assert_eq!(files, ["1.png", "3.jpg"]);
    assert_eq!(list(folder.path()), ["1.png", "2.png", "3.jpg", "a.ndjson", "below"]);
}

#[test]
fn the_second_signal_ends_the_program_at_once() {
    let folder = folder();
    // Takes long enough for two signals.
    image::RgbImage::new(9000, 9000).save(folder.path().join("large.png")).unwrap();
    let (mut child, _, mut stdin) = start(&folder, detect(&folder));
    writeln!(stdin, "large.png").unwrap();
    thread::sleep(Duration::from_millis(300));
    signal("-INT", &child);
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut String::new()).unwrap();
    signal("-INT", &child);
    assert_eq!(end(child).0, Some(130));
    assert_eq!(list(folder.path()), ["1.png", "2.png", "3.jpg", "a.ndjson", "below", "large.png"]);
}

#[test]
fn a_sighup_that_nohup_ignores_does_not_end_the_program() {
    let folder = folder();
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]).current_dir(folder.path());
    let plain = detect(&folder);
    command.arg(plain.get_program()).args(plain.get_args());
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let (child, process, mut stdin) = start(&folder, command);
    signal("-HUP", &child);
    thread::sleep(Duration::from_millis(200));
    process(&mut stdin, "3.jpg");
    drop(stdin);
    assert_eq!(end(child).0, Some(0));

    fs::remove_file(folder.path().join("a.ndjson")).unwrap();
    let (child, _, _stdin) = start(&folder, detect(&folder));
    signal("-HUP", &child);
    assert_eq!(end(child).0, Some(130));
}
