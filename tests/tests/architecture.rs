//! Which dependencies each crate may have, as in CONTRIBUTING.md, "Invariants".

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Packages in the dependency tree of `member`, without build and dev dependencies.
fn dependencies(metadata: &Value, member: &str) -> BTreeSet<String> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let names: BTreeMap<_, _> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| (text(&package["id"]), text(&package["name"])))
        .collect();
    let nodes: BTreeMap<_, _> =
        metadata["resolve"]["nodes"].as_array().unwrap().iter().map(|node| (text(&node["id"]), node)).collect();
    let is_normal =
        |dependency: &&Value| dependency["dep_kinds"].as_array().unwrap().iter().any(|kind| kind["kind"].is_null());
    let start = names.iter().find(|(_, name)| *name == member).unwrap().0;
    let mut pending = vec![start.clone()];
    let mut seen = BTreeSet::new();
    while let Some(id) = pending.pop() {
        if seen.insert(id.clone()) {
            let dependencies = nodes[&id]["deps"].as_array().unwrap().iter().filter(is_normal);
            pending.extend(dependencies.map(|dependency| text(&dependency["pkg"])));
        }
    }
    seen.into_iter().map(|id| names[&id].clone()).collect()
}

#[test]
fn crates_have_only_allowed_dependencies() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--filter-platform=x86_64-unknown-linux-gnu"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata = serde_json::from_slice(&output.stdout).unwrap();

    let libtorch = ["tch", "torch-sys"];
    let onnxruntime = ["ort", "ort-sys"];
    let codecs = ["image", "png", "zune-jpeg", "image-webp", "gif", "tiff"];
    let ours = ["models", "runtime", "exporter", "process-group", "trainer"];
    let allowed = [
        ("models", vec![]),
        ("runtime", [&["models"], onnxruntime.as_slice(), &codecs].concat()),
        ("exporter", [&["models", "runtime"], onnxruntime.as_slice(), &codecs].concat()),
        ("process-group", libtorch.to_vec()),
        ("trainer", [&["models", "runtime", "process-group"], onnxruntime.as_slice(), &codecs, &libtorch].concat()),
    ];
    for (member, allowed) in allowed {
        let linked = dependencies(&metadata, member);
        for package in [libtorch.as_slice(), &onnxruntime, &codecs, &ours].concat() {
            let expected = allowed.contains(&package) || package == member;
            assert_eq!(linked.contains(package), expected, "does `{member}` depend on `{package}`?");
        }
    }
}

/// Packages that a package links with these features, as `cargo tree` prints them.
fn tree(arguments: &[&str]) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--edges=normal", "--prefix=none", "--format={p}", "--package"])
        .args(arguments)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[test]
fn only_the_program_runtime_links_a_server_and_only_programs_a_command_line() {
    let server = ["hyper", "hyper-util", "tokio"];
    let program = ["clap", "anyhow", "indicatif", "signal-hook", "tracing-subscriber"];
    let without_features = tree(&["runtime", "--no-default-features"]);
    assert!(without_features.contains("ort"));
    for package in server.iter().chain(&program) {
        assert!(!without_features.contains(*package), "the library links {package}");
    }
    let without_server = tree(&["runtime", "--no-default-features", "--features=cli"]);
    assert!(program.iter().all(|package| without_server.contains(*package)));
    let everything = tree(&["runtime"]);
    assert!(server.iter().all(|package| everything.contains(*package)));
    for (name, linked) in
        [("runtime", without_server), ("exporter", tree(&["exporter"])), ("trainer", tree(&["trainer"]))]
    {
        assert!(server.iter().all(|package| !linked.contains(*package)), "{name}: {linked:?}");
        assert!(linked.contains("signal-hook") && !linked.contains("ctrlc"), "{name}: {linked:?}");
    }
}

#[test]
fn unsafe_code_is_where_the_invariants_say() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let invariants = std::fs::read_to_string(format!("{root}/CONTRIBUTING.md")).unwrap();
    let output = Command::new("git").args(["grep", "-l", "unsafe {", "--", "*.rs"]).current_dir(root).output();
    let files = String::from_utf8(output.unwrap().stdout).unwrap();
    let files: Vec<_> = files.lines().filter(|file| !file.starts_with("tests/")).collect();
    assert!(!files.is_empty());
    for file in files {
        assert!(invariants.contains(&format!("`{file}`")), "CONTRIBUTING.md does not name {file}");
    }
}
