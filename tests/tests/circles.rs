//! Files of a crate use each other without circles. `mod` lines and re-exports do not count.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Path of a module from the crate's root.
type Module = Vec<String>;

/// The sources of a crate by module, without their tests.
fn sources(folder: &Path, module: &[String], found: &mut BTreeMap<Module, String>) {
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let name = entry.file_stem().unwrap().to_str().unwrap().to_owned();
        let path = if module.is_empty() && name == "lib" { Vec::new() } else { [module, &[name]].concat() };
        if entry.is_dir() {
            sources(&entry, &path, found);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&entry).unwrap();
            let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
            found.insert(path, text.to_owned());
        }
    }
}

/// The paths of a tree such as `a::{b, c::{d, e}}`.
fn paths(tree: &str) -> Vec<String> {
    let Some((prefix, rest)) = tree.split_once('{') else { return vec![tree.trim().to_owned()] };
    let inner = &rest[..rest.rfind('}').unwrap()];
    let (mut parts, mut depth) = (vec![String::new()], 0);
    for letter in inner.chars() {
        depth += i32::from(letter == '{') - i32::from(letter == '}');
        match letter {
            ',' if depth == 0 => parts.push(String::new()),
            letter => parts.last_mut().unwrap().push(letter),
        }
    }
    let parts = parts.iter().filter(|part| !part.trim().is_empty());
    parts.flat_map(|part| paths(&format!("{}{}", prefix.trim(), part.trim()))).collect()
}

/// The paths that a text uses, or re-exports.
fn uses(text: &str, exported: bool) -> Vec<String> {
    // Statements begin a line, unlike the word in a message or a comment.
    let starts = text.match_indices('\n').map(|(index, _)| &text[index + 1..]).chain([text]);
    let statements = starts.filter_map(|rest| {
        let (before, path) = rest.lines().next()?.split_once("use ")?;
        let is_use = before.is_empty() || before == "pub " || before.starts_with("pub(") && before.ends_with(") ");
        let rest = &rest[rest.len().min(before.len() + "use ".len())..];
        (is_use && !path.is_empty() && before.is_empty() != exported).then(|| rest.split(';').next())?
    });
    statements.flat_map(paths).collect()
}

/// The root of the crate that contains a module: `main` for those that `main.rs` declares, else the library.
fn root(modules: &BTreeMap<Module, String>, module: &[String]) -> Module {
    let main = vec!["main".to_owned()];
    let declares = |first: &String| modules.get(&main).is_some_and(|text| text.contains(&format!("mod {first};")));
    if module.first().is_some_and(|first| *first == main[0] || declares(first)) { main } else { Vec::new() }
}

/// The module that defines what `path`, used in `module`, means; none outside the crate.
fn resolve(modules: &BTreeMap<Module, String>, module: &[String], path: &str, depth: usize) -> Option<Module> {
    let mut segments: Vec<_> = path.split("::").map(|part| part.split(" as ").next().unwrap().trim()).collect();
    let mut current = module.to_vec();
    match segments[0] {
        "crate" => {
            current = root(modules, module);
            segments.remove(0);
            // Modules of a program are siblings of `main`, which stands for its root.
            if segments.first().is_some_and(|first| modules.contains_key(&vec![(*first).to_owned()])) {
                current.clear();
            }
        }
        "self" => _ = segments.remove(0),
        "super" => {
            while segments.first() == Some(&"super") {
                (_, _) = (current.pop(), segments.remove(0));
            }
        }
        first if modules.contains_key(&[module, &[first.to_owned()]].concat()) => {}
        // The root module of a program has no folder of its own.
        first if *module == ["main"] && modules.contains_key(&vec![first.to_owned()]) => current.clear(),
        _ => return None,
    }
    while let Some(first) = segments.first() {
        let inner = [&current[..], &[(*first).to_owned()]].concat();
        if !modules.contains_key(&inner) {
            break;
        }
        (current, _) = (inner, segments.remove(0));
    }
    let Some(name) = segments.first().filter(|_| depth < 8) else { return Some(current) };
    let exports = uses(&modules[&current], true);
    let exported =
        exports.iter().find(|path| path.rsplit("::").next().unwrap().rsplit(" as ").next().unwrap() == *name);
    let defined = exported.and_then(|path| resolve(modules, &current, path, depth + 1));
    Some(defined.unwrap_or(current))
}

/// Groups of modules that reach each other.
fn circles(crate_name: &str) -> Vec<Vec<String>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(crate_name).join("src");
    let mut modules = BTreeMap::new();
    sources(&folder, &[], &mut modules);
    let used = |module: &Module, text: &str| -> BTreeSet<Module> {
        let used = uses(text, false).into_iter().filter_map(|path| resolve(&modules, module, &path, 0));
        used.filter(|used| used != module).collect()
    };
    let graph: BTreeMap<_, _> = modules.iter().map(|(module, text)| (module, used(module, text))).collect();
    assert!(graph.values().map(BTreeSet::len).sum::<usize>() > 50, "few uses found in {crate_name}");
    let reached = |start: &Module| {
        let (mut seen, mut pending) = (BTreeSet::new(), vec![start]);
        while let Some(module) = pending.pop() {
            pending.extend(graph[module].iter().filter(|used| seen.insert((*used).clone())));
        }
        seen
    };
    let reached: BTreeMap<_, _> = modules.keys().map(|module| (module, reached(module))).collect();
    let circle = |module: &Module| -> Vec<String> {
        let members = reached[module].iter().filter(|other| reached[other].contains(module));
        members.map(|member| member.join("::")).collect()
    };
    let circles: BTreeSet<_> = modules.keys().map(circle).filter(|circle| !circle.is_empty()).collect();
    circles.into_iter().collect()
}

#[test]
fn files_of_a_crate_have_no_circles() {
    for crate_name in ["models", "runtime", "exporter", "trainer"] {
        assert_eq!(circles(crate_name), Vec::<Vec<String>>::new(), "{crate_name}");
    }
}

#[test]
fn items_of_main_are_its_own() {
    let modules = [("main", "mod detect;"), ("detect", ""), ("cli", ""), ("", "")];
    let module = |name: &str| if name.is_empty() { Vec::new() } else { vec![name.to_owned()] };
    let modules = modules.map(|(name, text)| (module(name), text.to_owned())).into();
    let resolved = |name: &str, path: &str| resolve(&modules, &module(name), path, 0);
    assert_eq!(resolved("detect", "crate::SOME_FAILED"), Some(module("main")));
    assert_eq!(resolved("cli", "crate::Detector"), Some(module("")));
    assert_eq!(resolved("main", "detect::DetectArgs"), Some(module("detect")));
}

#[test]
fn use_trees_are_expanded() {
    assert_eq!(paths("a::{b, c::{d, e as f},}"), ["a::b", "a::c::d", "a::c::e as f"]);
    let text = "//! Text.\nuse a::b;\npub(crate) use c::{d,\n e};\nfn f() { bail!(\"off; use `{x\"); }\nuse g;";
    assert_eq!(
        (uses(text, false), uses(text, true)),
        (vec!["a::b".to_owned(), "g".to_owned()], vec!["c::d".to_owned(), "c::e".to_owned()])
    );
}
