//! Any bytes on stdin become names, each of which can be answered by one line of JSON that says the name.

#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use fuzz::Scratch;
use libfuzzer_sys::fuzz_target;
use runtime::inputs::Lines;
use runtime::output::{Failure, Format, Output, Report};

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|bytes: &[u8]| {
    let lines: Vec<Result<PathBuf, _>> =
        Lines::new(bytes).map(|line| line.expect("reading from memory does not fail")).collect();
    let filled = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty() && *line != b"\r");
    assert_eq!(lines.len(), filled.count());

    let path = SCRATCH.path("answers.ndjson");
    let mut answers = Output::open(&path, Format::Ndjson).expect("/dev/shm can be written to");
    let mut reports = Vec::new();
    for line in lines {
        let (file, error) = match line {
            Ok(name) => (name, "not looked at".to_owned()),
            Err(bad) => (PathBuf::from(&bad.beginning), bad.to_string()),
        };
        let report = Report { file, frame: None, outcome: Err(Failure::Missing(error)) };
        answers.write(&report, &[]).expect("/dev/shm has room");
        reports.push(report);
    }
    answers.finish().expect("/dev/shm has room");
    let answers = std::fs::read_to_string(&path).expect("JSON is UTF-8");
    assert_eq!(answers.lines().count(), reports.len());
    for (answer, report) in answers.lines().zip(&reports) {
        let answer: serde_json::Value = serde_json::from_str(answer).expect("every line is JSON");
        assert_eq!(answer["file"], *report.file.to_string_lossy());
    }
});
