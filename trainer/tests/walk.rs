//! The walk through the code in README.md names files, types and functions that exist.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::fs;
use std::path::Path;

#[test]
fn the_walk_names_functions_that_exist() {
    let trainer = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(trainer.join("README.md")).unwrap();
    let (_, walk) = readme.split_once("## From the command to an update of the weights").unwrap();
    let walk = walk.split("\n## ").next().unwrap();
    let stops: Vec<_> = walk.lines().filter(|line| line.starts_with("| ") && line.contains(".rs` | `")).collect();
    assert_eq!(stops.len(), 10);
    for (number, stop) in (1..).zip(stops) {
        let cells: Vec<_> = stop.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        assert_eq!(cells[1], number.to_string());
        let code = fs::read_to_string(trainer.join("..").join(cells[2])).unwrap();
        let function = match cells[3].split_once("::") {
            Some((kind, function)) => {
                assert!(code.contains(&format!("struct {kind}")), "{kind} is not in {}", cells[2]);
                function
            }
            None => cells[3],
        };
        let is_declared = ["(", "<"].iter().any(|next| code.contains(&format!("fn {function}{next}")));
        assert!(is_declared, "{function} is not in {}", cells[2]);
    }
}
