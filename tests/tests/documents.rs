//! Links in the documents lead somewhere, and versions that they name are those of the build.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// All Markdown files of the project.
fn documents() -> Vec<PathBuf> {
    let mut folders = vec![root()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            let ours = !name.starts_with('.') && !["target", "runs", "corpus", "dist"].contains(&name);
            match path.is_dir() {
                true if ours => folders.push(path),
                false if name.ends_with(".md") => files.push(path),
                _ => {}
            }
        }
    }
    files
}

/// The lines of a document outside of fenced blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut in_block = false;
    text.lines().filter(move |line| {
        let is_fence = line.starts_with("```");
        in_block ^= is_fence;
        !is_fence && !in_block
    })
}

/// The lines of a document in fenced blocks.
fn blocks(text: &str) -> impl Iterator<Item = &str> {
    let mut in_block = false;
    text.lines().filter(move |line| {
        let is_fence = line.starts_with("```");
        in_block ^= is_fence;
        !is_fence && in_block
    })
}

/// Targets of links and images: what is between `](` and `)`.
fn links(text: &str) -> Vec<String> {
    // A link may go on in the next line.
    let text = prose(text).collect::<Vec<_>>().join("\n");
    let ends = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    ends.map(|(target, _)| target.to_owned()).collect()
}

/// The anchors of headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let anchor = |heading: &str| {
        let kept = heading.to_lowercase().replace(' ', "-");
        kept.chars().filter(|c| c.is_alphanumeric() || ['-', '_'].contains(c)).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn relative_links_lead_to_files_and_headings() {
    let documents = documents();
    assert!(documents.len() > 10, "{documents:?}");
    let (mut checked, mut dead) = (0, Vec::new());
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        for link in links(&text).into_iter().filter(|link| !link.contains("://")) {
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if file.is_empty() { document.clone() } else { document.with_file_name("").join(file) };
            let leads = target.exists()
                && (anchor.is_empty() || anchors(&fs::read_to_string(&target).unwrap()).contains(anchor));
            checked += 1;
            if !leads {
                dead.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(dead.is_empty() && checked > 50, "of {checked} links, dead:\n{}", dead.join("\n"));
}

#[test]
fn jobs_of_make_that_documents_name_exist() {
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    let is_name = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase());
    let jobs = makefile.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name);
    let jobs: BTreeSet<_> = jobs.filter(|name| is_name(name)).collect();
    let mut checked = 0;
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        let in_prose = text.split("`make ").skip(1);
        for command in in_prose.chain(blocks(&text).filter_map(|line| line.strip_prefix("make "))) {
            let words = command.split(['`', '\n', '#']).next().unwrap().split_whitespace();
            // Of `make setup CUDA=1`, the first.
            for job in words.filter(|word| is_name(word)) {
                assert!(jobs.contains(job), "{}: make {job}; there are {jobs:?}", document.display());
                checked += 1;
            }
        }
    }
    assert!(checked > 20, "{checked}");
}

#[test]
fn documents_name_the_minimum_rust_version() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let line = manifest.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap();
    let version = line.trim_matches('"');
    let image = format!("rust:{version}");
    let places = [("README.md", "Rust "), ("STABILITY.md", "minimum Rust version is ")];
    for (file, before) in places {
        let text = fs::read_to_string(root().join(file)).unwrap();
        assert!(text.contains(&format!("{before}{version}")), "{file} does not name Rust {version}");
    }
    let container = fs::read_to_string(root().join("runtime/deploy/Containerfile")).unwrap();
    let builds = container.lines().filter(|line| line.contains("rust:"));
    builds.for_each(|line| assert!(line.contains(&image), "{line}"));
}

#[test]
fn the_readme_is_short() {
    let lines = fs::read_to_string(root().join("README.md")).unwrap().lines().count();
    assert!(lines <= 180, "{lines}");
}

/// The text below the heading with this anchor, up to the next heading.
fn section<'a>(text: &'a str, anchor: &str) -> &'a str {
    let starts = text.match_indices("\n#").map(|(index, _)| index + 1);
    let rest = starts.map(|start| &text[start..]).find(|rest| anchors(rest.lines().next().unwrap()).contains(anchor));
    let rest = rest.unwrap();
    &rest[..rest.find("\n## ").unwrap_or(rest.len())]
}

/// Each row of the table of results links to a section that has its numbers, the command and the date.
#[test]
fn results_are_those_of_the_linked_sections() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let rows: Vec<_> = section(&readme, "results").lines().filter(|line| line.contains("](")).collect();
    assert!(rows.len() >= 6, "{rows:?}");
    // And so does the figure of the first steps.
    let figure = readme.split("from scratch to AP50 ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    let trainer = fs::read_to_string(root().join("trainer/README.md")).unwrap();
    assert!(section(&trainer, "results-on-real-data").contains(figure), "{figure}");
    for row in rows {
        let cells: Vec<_> = row.split('|').collect();
        let links = links(row);
        let (file, anchor) = links.last().unwrap().split_once('#').unwrap();
        let text = fs::read_to_string(root().join(file)).unwrap();
        let section = section(&text, anchor);
        assert!(section.contains("2026-") && section.contains('`'), "{file}#{anchor} has no date or no command");
        // Numbers with a decimal point: the others are sizes and counts.
        let words = cells[2..4].iter().flat_map(|cell| cell.split([' ', ',', ';', ':']));
        for number in words.filter(|word| word.contains('.') && word.parse::<f64>().is_ok()) {
            assert!(section.contains(number), "{number} of `{row}` is not in {file}#{anchor}");
        }
    }
}
