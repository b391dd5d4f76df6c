//! The field's words: names and texts of the project do without words of its own for what has a standard term.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::fs;
use std::path::{Path, PathBuf};

/// What is not said, and what is said for it, within identifiers too and whatever the case.
const REPLACED: [(&str, &str); 9] = [
    ("picture", "image"),
    ("trunk", "backbone"),
    ("processor", "CPU"),
    ("the seed's", "yhenon/pytorch-retinanet, with file and commit"),
    ("look_through", "`TopK::scan`"),
    ("passed_over", "`skipped_providers`"),
    ("try_out", "`smoke_test`"),
    ("sureness", "`sort_score`"),
    ("share_in", "`intersection_over_area`"),
];

/// Likewise, but only as whole words: they are parts of others, such as `discard`.
const REPLACED_WORDS: [(&str, &str); 2] = [("card", "GPU"), ("cards", "GPUs")];

/// Files in which the words are somebody else's, or what the project's history is about.
const EXCEPTIONS: [&str; 3] = ["tests/tests/words.rs", "models/specs/classes", "CHANGELOG.md"];

/// Where the shared test data has its images, as tests and scripts write it in lower case.
const TEST_DATA: [&str; 5] =
    ["pictures/pillow__", "pictures/exif__", "join(\"pictures\")", "[\"pictures\", \"bccd/", "retinanet_data/pictures"];

#[test]
fn texts_and_names_use_the_terms_of_the_field() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut files = Vec::new();
    collect(root, &mut files);
    assert!(files.len() > 300, "only {} files found below {}", files.len(), root.display());
    let mut found = Vec::new();
    for file in files {
        let name = file.strip_prefix(root).unwrap().display().to_string();
        if EXCEPTIONS.iter().any(|exception| name.starts_with(exception)) {
            continue;
        }
        // What is no text holds weights, images or fuzzing inputs; its name counts all the same.
        let text = fs::read_to_string(&file).unwrap_or_default();
        for (number, line) in std::iter::once(name.as_str()).chain(text.lines()).enumerate() {
            let line = TEST_DATA.iter().fold(line.to_lowercase(), |line, path| line.replace(path, ""));
            let said = |word: &&str| line.split(|c: char| !c.is_alphanumeric()).any(|part| part == *word);
            let parts = REPLACED.iter().filter(|(word, _)| line.contains(word));
            let words = parts.chain(REPLACED_WORDS.iter().filter(|(word, _)| said(word)));
            found.extend(words.map(|(word, term)| format!("{name}:{number}: `{word}`, say {term}: {}", line.trim())));
        }
    }
    assert!(found.is_empty(), "{} places:\n{}", found.len(), found.join("\n"));
}

/// Every file below a folder that belongs to the project: what is built, brought or hidden apart.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let foreign = name.starts_with('.') && name != ".ci" || ["target", "runs", "corpus"].contains(&name.as_str());
        match path.is_dir() {
            true if !foreign => collect(&path, files),
            false if name != "Cargo.lock" => files.push(path),
            _ => {}
        }
    }
}
