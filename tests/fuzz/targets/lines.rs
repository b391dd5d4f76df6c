//! Arbitrary bytes on stdin become file names, each of which gets one line of JSON that contains the name.

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
    let non_empty = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty() && *line != b"\r");
    assert_eq!(lines.len(), non_empty.count());

    let path = SCRATCH.path("results.ndjson");
    let mut output = Output::open(&path, Format::Ndjson).expect("/dev/shm is writable");
    let mut reports = Vec::new();
    for line in lines {
        let (file, error) = match line {
            Ok(name) => (name, "not read".to_owned()),
            Err(bad) => (PathBuf::from(&bad.prefix), bad.to_string()),
        };
        let report = Report { file, frame: None, outcome: Err(Failure::Missing(error)) };
        output.write(&report, &[]).expect("/dev/shm has room");
        reports.push(report);
    }
    output.finish().expect("/dev/shm has room");
    let written = std::fs::read_to_string(&path).expect("JSON is UTF-8");
    assert_eq!(written.lines().count(), reports.len());
    for (line, report) in written.lines().zip(&reports) {
        let line: serde_json::Value = serde_json::from_str(line).expect("every line is JSON");
        assert_eq!(line["file"], *report.file.to_string_lossy());
    }
});
