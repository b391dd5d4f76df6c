//! Replaced terms must not come back: names and texts use the field's standard terms.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::fs;
use std::path::{Path, PathBuf};

/// Replaced terms and their replacements. Matches parts of words and of identifiers, in any case.
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

/// Likewise, but matches whole words only, since they occur in others such as `discard`.
const REPLACED_WORDS: [(&str, &str); 2] = [("card", "GPU"), ("cards", "GPUs")];

/// Files that may contain the terms: class names of data sets and the project's history.
const EXCEPTIONS: [&str; 3] = ["tests/tests/words.rs", "models/specs/classes", "CHANGELOG.md"];

/// Paths of the shared test data, as they occur in tests and scripts, in lower case.
const TEST_DATA: [&str; 6] = [
    "pictures/pillow__",
    "pictures/exif__",
    "join(\"pictures\")",
    "[\"pictures\", \"bccd/",
    "retinanet_data/pictures",
    "cases/14-pictures",
];

#[test]
fn texts_and_names_use_the_terms_of_the_field() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut files = Vec::new();
    collect(root, &mut files);
    assert!(files.len() > 300, "found only {} files in {}", files.len(), root.display());
    let mut found = Vec::new();
    for file in files {
        let name = file.strip_prefix(root).unwrap().display().to_string();
        if EXCEPTIONS.iter().any(|exception| name.starts_with(exception)) {
            continue;
        }
        // Only the names of binary files (weights, images, fuzzing inputs) are checked.
        let text = fs::read_to_string(&file).unwrap_or_default();
        for (number, line) in std::iter::once(name.as_str()).chain(text.lines()).enumerate() {
            let line = TEST_DATA.iter().fold(line.to_lowercase(), |line, path| line.replace(path, ""));
            let has_word = |word: &&str| line.split(|c: char| !c.is_alphanumeric()).any(|part| part == *word);
            let parts = REPLACED.iter().filter(|(word, _)| line.contains(word));
            let words = parts.chain(REPLACED_WORDS.iter().filter(|(word, _)| has_word(word)));
            found.extend(words.map(|(word, term)| format!("{name}:{number}: `{word}`, use {term}: {}", line.trim())));
        }
    }
    assert!(found.is_empty(), "{} replaced terms:\n{}", found.len(), found.join("\n"));
}

/// Collects all files of the project below a folder, except build outputs, downloads and hidden files.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let excluded =
            name.starts_with('.') && name != ".ci" || ["target", "runs", "corpus", "found"].contains(&name.as_str());
        match path.is_dir() {
            true if !excluded => collect(&path, files),
            false if name != "Cargo.lock" => files.push(path),
            _ => {}
        }
    }
}
