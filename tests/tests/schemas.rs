//! The JSON schemas and the configuration reference are those of the code.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Map, Value, json};
use trainer::config::TrainConfig;
use trainer::overrides::Overrides;

/// Environment variable: when set, the files are rewritten instead of compared.
const UPDATE: &str = "UPDATE_SCHEMAS";

const ACCEPT: &str = "to accept: UPDATE_SCHEMAS=1 cargo test -p tests --test schemas";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The schemas that a program writes, by file name.
fn schemas(program: &str) -> BTreeMap<String, String> {
    let folder = tempfile::tempdir().unwrap();
    let status = Command::new(tests::programs().join(program)).arg("--generate").arg(folder.path()).status();
    assert!(status.unwrap().success());
    texts(&folder.path().join("schemas"))
}

/// The files of a folder, by name.
fn texts(folder: &Path) -> BTreeMap<String, String> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    files.map(|file| (file.file_name().into_string().unwrap(), fs::read_to_string(file.path()).unwrap())).collect()
}

#[test]
fn schemas_are_those_of_the_programs() {
    for program in ["runtime", "trainer"] {
        let folder = root().join(program).join("schemas");
        let current = schemas(program);
        assert!(current.len() > 3, "{:?}", current.keys());
        if std::env::var_os(UPDATE).is_some() {
            fs::create_dir_all(&folder).unwrap();
            current.iter().for_each(|(name, text)| fs::write(folder.join(name), text).unwrap());
        }
        let reviewed = texts(&folder);
        assert!(reviewed.keys().eq(current.keys()), "{:?}, but {program} writes {:?}", reviewed.keys(), current.keys());
        for (name, text) in &current {
            assert!(reviewed[name] == *text, "{program} writes another {name}; {ACCEPT}");
        }
    }
}

#[test]
fn the_configuration_reference_is_that_of_the_program() {
    let path = root().join("trainer/CONFIGURATION.md");
    let text = Reference::new().text();
    if std::env::var_os(UPDATE).is_some() {
        fs::write(&path, &text).unwrap();
    }
    let reviewed = fs::read_to_string(path).unwrap();
    let differing = text.lines().zip(reviewed.lines()).find(|(current, reviewed)| current != reviewed);
    assert!(text == reviewed, "{differing:?}; {ACCEPT}");
}

const HEAD: &str = "\
# Configuration

Every key of `retinanet.yaml`, which `trainer init` writes and `trainer fit`, `check` and `bench` read. Unknown keys are errors. Any key can
be set with `--set`, as in `--set augmentation.crop.probability=0.5`.

Ranges are what the program says when it refuses a value, while all other keys have their defaults. Editors with a YAML language server
complete and check the file if it begins with `# yaml-language-server: $schema=` and the path of
[schemas/configuration.json](schemas/configuration.json).

This page is made from the code: `UPDATE_SCHEMAS=1 cargo test -p tests --test schemas`.
";

/// The text of CONFIGURATION.md.
struct Reference {
    schema: Value,
    /// A configuration with every key, in the order of the code.
    config: serde_yaml::Value,
    /// The place of the keys of each type that was described.
    described: BTreeMap<String, String>,
    out: String,
}

impl Reference {
    fn new() -> Self {
        let config = parse("data: {train: {annotations: train.json}, validation: {annotations: val.json}}").unwrap();
        Self {
            schema: serde_json::from_str(&schemas("trainer")["configuration.json"]).unwrap(),
            config: serde_yaml::to_value(config).unwrap(),
            described: BTreeMap::new(),
            out: HEAD.to_owned(),
        }
    }

    fn text(mut self) -> String {
        let schema = self.schema.clone();
        for key in self.order(&schema, "") {
            let property = &schema["properties"][&key];
            let (_, section) = self.resolve(property);
            if key == "model" {
                for part in self.order(&section, &key) {
                    self.section(&section["properties"][&part], &format!("{key}.{part}"));
                }
            } else {
                self.section(property, &key);
            }
        }
        self.out
    }

    /// A heading and a table. A key of the model that is no section has a table of its own.
    fn section(&mut self, property: &Value, path: &str) {
        let (_, section) = self.resolve(property);
        write!(self.out, "\n## `{path}`\n\n").unwrap();
        let is_section = section["properties"].is_object();
        if is_section {
            write!(self.out, "{}\n\n", description(property, &section)).unwrap();
        }
        self.out += "| key | default | values | meaning |\n|---|---|---|---|\n";
        if is_section {
            self.rows(&section, path, "");
        } else {
            let name = path.rsplit('.').next().unwrap();
            self.row(property, path, name, false);
        }
    }

    fn rows(&mut self, section: &Value, path: &str, prefix: &str) {
        for key in self.order(section, path) {
            let property = &section["properties"][&key];
            let required = section["required"].as_array().is_some_and(|keys| keys.contains(&json!(key)));
            self.row(property, &format!("{path}.{key}"), &format!("{prefix}{key}"), required);
        }
    }

    fn row(&mut self, property: &Value, path: &str, name: &str, required: bool) {
        let (kind, target) = self.resolve(property);
        let meaning = description(property, &target).replace('|', "\\|");
        if target["properties"].is_object() {
            let known = self.described.get(&kind).cloned();
            let keys = known.as_ref().map_or(String::new(), |place| format!(" Keys as in `{place}`."));
            let optional = if is_nullable(property) { "`null`" } else { "" };
            writeln!(self.out, "| `{name}` | {optional} | section | {meaning}{keys} |").unwrap();
            if known.is_none() {
                self.described.insert(kind, path.to_owned());
                self.rows(&target, path, &format!("{name}."));
            }
            return;
        }
        let default = match property.get("default") {
            Some(default) => format!("`{}`", default.as_str().map_or_else(|| default.to_string(), str::to_owned)),
            None if required => "required".to_owned(),
            None if is_nullable(property) => "`null`".to_owned(),
            None => String::new(),
        };
        let values = self.values(property, &target, path);
        let options: String = options(&target).iter().map(|(value, text)| format!(" `{value}`: {text}")).collect();
        writeln!(self.out, "| `{name}` | {default} | {values} | {meaning}{options} |").unwrap();
    }

    /// The keys of a section, in the order of the code.
    fn order(&self, section: &Value, path: &str) -> Vec<String> {
        let written = path.split('.').filter(|key| !key.is_empty()).fold(&self.config, |value, key| &first(value)[key]);
        let written: Vec<_> = first(written).as_mapping().map_or(Vec::new(), |map| map.keys().collect());
        let mut keys: Vec<_> = section["properties"].as_object().unwrap().keys().cloned().collect();
        keys.sort_by_key(|key| written.iter().position(|known| **known == key.as_str()).unwrap_or(usize::MAX));
        keys
    }

    /// The name and schema of what a property refers to; of a data set or a list of them, the data set.
    fn resolve(&self, property: &Value) -> (String, Value) {
        let choice = property["anyOf"].as_array().and_then(|choices| choices.first()).unwrap_or(property);
        match choice["$ref"].as_str().and_then(|path| path.strip_prefix("#/$defs/")) {
            Some(name) => (name.to_owned(), self.schema["$defs"][name].clone()),
            None => (String::new(), choice.clone()),
        }
    }

    /// The type of a value, and its range.
    fn values(&self, property: &Value, target: &Value, path: &str) -> String {
        let options = options(target);
        let values = if options.is_empty() {
            let (kind, wrong) = self.kind(target);
            let ranges = wrong.iter().filter_map(|wrong| self.expected(path, wrong));
            let range: Vec<_> = ranges.map(|range| range.replace(", or null", "")).take(1).collect();
            [vec![kind], range].concat().join(", ")
        } else {
            options.iter().map(|(value, _)| format!("`{value}`")).collect::<Vec<_>>().join(", ")
        };
        if is_nullable(property) { format!("{values}, or null") } else { values }
    }

    /// The name of a type, and values that are out of range if there is one.
    fn kind(&self, schema: &Value) -> (String, Vec<Value>) {
        let name = schema["type"].as_str().or_else(|| schema["type"][0].as_str()).unwrap_or_default();
        match name {
            "number" => ("number".to_owned(), vec![json!(".nan")]),
            "integer" => ("whole number".to_owned(), vec![json!(0), json!(u32::MAX)]),
            "boolean" => ("true or false".to_owned(), Vec::new()),
            "array" => {
                let (_, item) = self.resolve(&schema["items"]);
                if let Some(keys) = item["properties"].as_object() {
                    let keys: Vec<_> = keys.keys().map(String::as_str).collect();
                    return (format!("list of `{{{}}}`", keys.join(", ")), Vec::new());
                }
                let (kind, wrong) = self.kind(&item);
                let count = schema["minItems"].as_u64();
                let wrong = wrong.into_iter().map(|wrong| Value::from(vec![wrong; count.unwrap_or(1) as usize]));
                let kind = count.map_or(format!("list of {kind}s"), |count| format!("{count} {kind}s"));
                (kind, wrong.collect())
            }
            _ => (if name == "string" { "path" } else { name }.to_owned(), Vec::new()),
        }
    }

    /// What the program expects instead of a wrong value; none if it takes it.
    fn expected(&self, path: &str, wrong: &Value) -> Option<String> {
        let mut config = self.config.clone();
        let key = path.split('.').fold(&mut config, |value, key| match value {
            serde_yaml::Value::Sequence(values) => &mut values[0][key],
            value => &mut value[key],
        });
        *key = serde_yaml::from_str(&wrong.to_string().replace('"', "")).unwrap();
        let error = parse(&serde_yaml::to_string(&config).unwrap()).err()?;
        let (_, expected) = error.rsplit_once("expected ").unwrap_or_else(|| panic!("{path}: {error}"));
        Some(expected.split([';', '\n']).next().unwrap().split(" at line ").next().unwrap().to_owned())
    }
}

fn parse(text: &str) -> Result<TrainConfig, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    TrainConfig::read(file.path(), None, &Overrides::default()).map_err(|error| format!("{error:#}"))
}

/// The first of a list, or the value itself.
fn first(value: &serde_yaml::Value) -> &serde_yaml::Value {
    value.as_sequence().and_then(|values| values.first()).unwrap_or(value)
}

/// The doc comment of a key, or else that of its type, on one line.
fn description(property: &Value, target: &Value) -> String {
    let texts = [&property["description"], &target["description"]];
    let text = texts.iter().find_map(|text| text.as_str()).unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The values of an enum and their meanings.
fn options(schema: &Value) -> Vec<(String, String)> {
    let empty = Vec::new();
    let choices = schema["oneOf"].as_array().unwrap_or(&empty).iter();
    choices.map(|choice| (choice["const"].as_str().unwrap().to_owned(), description(choice, &Value::Null))).collect()
}

fn is_nullable(property: &Value) -> bool {
    let null = json!("null");
    let choices = property["anyOf"].as_array().into_iter().flatten();
    property["type"].as_array().is_some_and(|types| types.contains(&null))
        || choices.filter_map(Value::as_object).any(|choice: &Map<String, Value>| choice.get("type") == Some(&null))
}
