//! The tables in `trainer/MIGRATING.md` name flags and keys that exist.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_yaml::Value;

/// The right column of each row.
fn ours(text: &str) -> Vec<&str> {
    let rows = text.lines().filter(|line| line.starts_with("| ") && !line.ends_with("| here |"));
    rows.map(|row| row.trim_end_matches(" |").rsplit(" | ").next().unwrap()).collect()
}

/// The parts of a text in backticks.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The dotted keys of a configuration, each also without its leading parts.
fn keys(value: &Value, prefix: &str, all: &mut BTreeSet<String>) {
    let Value::Mapping(map) = value else { return };
    for (key, value) in map {
        let key = format!("{prefix}{}", key.as_str().unwrap());
        for (index, _) in key.match_indices('.') {
            all.insert(key[index + 1..].to_owned());
        }
        all.insert(key.clone());
        keys(value, &format!("{key}."), all);
    }
}

#[test]
fn migration_tables_name_existing_flags_and_keys() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = fs::read_to_string(root.join("trainer/MIGRATING.md")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("retinanet.yaml");
    let status = Command::new(tests::programs().join("trainer")).args(["-q", "init", "--out"]).arg(&file).status();
    assert!(status.unwrap().success());
    let mut known = BTreeSet::new();
    keys(&serde_yaml::from_str(&fs::read_to_string(file).unwrap()).unwrap(), "", &mut known);
    // Keys that the file mentions only in comments.
    known.extend(["data.train.classes", "run.workers"].map(str::to_owned));
    let help: String = fs::read_dir(root.join("tests/help"))
        .unwrap()
        .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect();

    let rows = ours(&text);
    assert!(rows.len() > 60, "{}", rows.len());
    let mut checked = 0;
    for part in rows.iter().flat_map(|row| code(row)) {
        for flag in part.split(' ').filter(|word| word.starts_with("--")) {
            assert!(help.contains(flag), "no program has the flag {flag} of `{part}`");
            checked += 1;
        }
        let key = part.split(": ").next().unwrap();
        let sections = ["data.", "augmentation.", "matching.", "loss.", "optimizer.", "schedule.", "run.", "model."];
        if sections.iter().any(|section| key.starts_with(section)) {
            assert!(known.contains(key), "`{key}` is no key of the configuration");
            checked += 1;
        }
    }
    assert!(checked > 80, "{checked}");
}
