//! What packagers use: man pages and completions.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::fs;
use std::path::Path;
use std::process::Command;

/// The names of the commands in `tests/help`, which `help.rs` compares with the programs: `runtime-detect`, ...
fn commands(program: &str) -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("help");
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let names = names.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned());
    names.filter(|name| name.split('-').next() == Some(program)).collect()
}

#[test]
fn every_command_has_a_man_page_and_completions() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["trainer", "exporter", "runtime"] {
        let out = folder.path().join(name);
        let output = Command::new(tests::programs().join(name)).arg("--generate").arg(&out).output().unwrap();
        assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");

        let commands = commands(name);
        assert!(commands.iter().any(|command| command == name), "{commands:?}");
        for command in &commands {
            let page = fs::read_to_string(out.join(format!("{command}.1"))).unwrap();
            assert!(page.contains(&format!(".TH {command} 1")), "{page}");
        }
        let completions = |file: &str| fs::read_to_string(out.join(file)).unwrap();
        let texts = [format!("{name}.bash"), format!("_{name}"), format!("{name}.fish")].map(|file| completions(&file));
        for flag in ["onnxruntime", "version"].iter().filter(|flag| name != "trainer" || **flag == "version") {
            assert!(texts.iter().all(|text| text.contains(flag)), "{name} {flag}");
        }
        let script = format!("source {}/{name}.bash && complete -p {name}", out.display());
        let output = Command::new("bash").args(["-c", &script]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn generate_needs_a_folder_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "kept").unwrap();
    let program = tests::programs().join("runtime");
    let run = |arguments: &[&str]| {
        let output = Command::new(&program).args(arguments).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, message) = run(&["--generate"]);
    assert!(code == 2 && message.contains("a value is required for '--generate <DIR>'"), "{message}");
    let (code, message) = run(&["--generate", file.to_str().unwrap()]);
    assert!(code == 1 && message.contains(file.to_str().unwrap()), "{message}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
    let (code, message) = run(&["detect", "--generate", "out"]);
    assert!(code == 2 && message.contains("--generate"), "{message}");
}
