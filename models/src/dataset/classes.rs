//! Class files: CSV `name,id`, a text with one name per line, or the `names` of YOLO's `data.yaml`.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, absolute};

use serde::Deserialize;
use serde_yaml::Value;

use super::error::DataError;
use super::parsed::{ClassKey, ParsedImage};
use super::{folder, text};
use crate::spec::Class;

/// Reads a class file: CSV `name,id`, one name per line, or the `names` of YOLO's `data.yaml`.
///
/// # Errors
/// When the file cannot be read, is none of these, or has an id or a name twice.
pub fn read(path: &Path) -> Result<Vec<Class>, DataError> {
    let text = text::read_text(path)?;
    let classes = if is_yaml(path) || text.lines().any(|line| line.starts_with("names:")) {
        from_yaml(path, &text)?
    } else if text.lines().any(|line| id(line).is_some()) {
        from_csv(path, &text)?
    } else {
        from_lines(path, &text)?
    };
    check(path, classes)
}

/// Names of class files, as LabelImg, Label Studio, CVAT and Ultralytics write them.
const FILES: [&str; 5] = ["classes.txt", "obj.names", "data.yaml", "dataset.yaml", "data.yml"];

/// Whether a file among labels is a class file or a note.
pub(super) fn is_class_file(file: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or(file);
    FILES.contains(&name) || name.to_ascii_lowercase().starts_with("readme")
}

/// Reads the class file among the labels, or up to two folders above them.
pub(super) fn find(labels: &Path) -> Result<Option<Vec<Class>>, DataError> {
    let folder = absolute(labels).unwrap_or_else(|_| labels.to_owned());
    let files = folder.ancestors().take(3).flat_map(|folder| FILES.map(|file| folder.join(file)));
    // YAML is used for much else.
    let has_names = |file: &Path| !is_yaml(file) || text::read_text(file).is_ok_and(|text| text.contains("names"));
    files.into_iter().find(|file| file.is_file() && has_names(file)).map(|file| read(&file)).transpose()
}

/// The classes that boxes name: by name, from id 0; for boxes with indices, one for each, named by its index.
pub(super) fn of_boxes(images: &[ParsedImage]) -> Vec<Class> {
    let (mut names, mut count) = (BTreeSet::new(), 0);
    for object in images.iter().flat_map(|image| &image.boxes) {
        match &object.class {
            ClassKey::Name(name) => _ = names.insert(name.clone()),
            ClassKey::Id(id) => count = count.max(id + 1),
        }
    }
    let names = (0..count).map(|id| id.to_string()).chain(names);
    (0..).zip(names).map(|(id, name)| Class { id, name }).collect()
}

fn is_yaml(path: &Path) -> bool {
    folder::has_extension(&path.to_string_lossy(), &["yaml", "yml"])
}

/// The id at the end of a line `name,id`.
fn id(line: &str) -> Option<i64> {
    line.rsplit_once(',')?.1.trim().parse().ok()
}

fn from_csv(path: &Path, text: &str) -> Result<Vec<Class>, DataError> {
    let mut classes = Vec::new();
    for row in text::rows(path, text) {
        let (line, row) = row?;
        let class = match (row.get(0), row.get(1).map(str::parse), row.len()) {
            (Some(name), Some(Ok(id)), 2) => Class { id, name: name.to_owned() },
            _ => return Err(DataError::line(path, line, "expected `name,id`; a header is not allowed")),
        };
        classes.push(class);
    }
    Ok(classes)
}

fn from_lines(path: &Path, text: &str) -> Result<Vec<Class>, DataError> {
    if text.lines().any(|line| line.split_once('=').is_some_and(|(key, _)| key.trim() == "names")) {
        return Err(DataError::invalid(
            path,
            "is Darknet's description of a data set; give the file that its `names` is",
        ));
    }
    let names = text.trim_end().lines().map(str::trim).zip(1u64..);
    let classes = names.map(|(name, line)| match name {
        "" => Err(DataError::line(path, line, "empty line, but every line is a class; remove it")),
        _ => Ok(Class { id: line as i64 - 1, name: name.to_owned() }),
    });
    classes.collect()
}

#[derive(Deserialize)]
struct DataYaml {
    names: Value,
    nc: Option<usize>,
}

fn from_yaml(path: &Path, text: &str) -> Result<Vec<Class>, DataError> {
    let invalid = |reason: String| DataError::invalid(path, format!("is not a YOLO `data.yaml`: {reason}"));
    let DataYaml { mut names, nc } = serde_yaml::from_str(text).map_err(|error| invalid(error.to_string()))?;
    // Some programs write the list as a text.
    if let Some(list) = names.as_str().and_then(|text| serde_yaml::from_str(text).ok()) {
        names = list;
    }
    let class = |(id, name): (&Value, &Value)| {
        let number = |value: &Value| value.as_i64().or_else(|| value.as_str()?.parse().ok());
        // Some programs write names before ids.
        let (id, name) = if number(id).is_none() && number(name).is_some() { (name, id) } else { (id, name) };
        let name = match name {
            Value::String(name) => Some(name.clone()),
            Value::Number(number) => Some(number.to_string()),
            Value::Bool(truth) => Some(truth.to_string()),
            _ => None,
        };
        let class = number(id).zip(name).map(|(id, name)| Class { id, name });
        class.ok_or_else(|| invalid("an entry of `names` is not a class id with a name".to_owned()))
    };
    let classes: Vec<_> = match &names {
        Value::Sequence(names) => (0..)
            .map(|id: i64| Value::from(id))
            .zip(names)
            .map(|(id, name)| class((&id, name)))
            .collect::<Result<_, _>>(),
        Value::Mapping(names) => names.iter().map(class).collect(),
        _ => Err(invalid("`names` is neither a list nor a map from id to name".to_owned())),
    }?;
    match nc {
        Some(nc) if nc != classes.len() => Err(invalid(format!("`nc` is {nc}, but `names` has {}", classes.len()))),
        _ => Ok(classes),
    }
}

/// Annotations refer to classes by id or by name, so both must be unique.
fn check(path: &Path, classes: Vec<Class>) -> Result<Vec<Class>, DataError> {
    let (mut ids, mut names) = (HashMap::new(), HashMap::new());
    for class in &classes {
        if let Some(other) = ids.insert(class.id, &class.name) {
            let reason = format!("assigns the id {} to both `{other}` and `{}`", class.id, class.name);
            return Err(DataError::invalid(path, reason));
        }
        if let Some(other) = names.insert(&class.name, class.id) {
            let reason = format!("assigns both ids {other} and {} to the name `{}`", class.id, class.name);
            return Err(DataError::invalid(path, reason));
        }
    }
    if classes.is_empty() {
        return Err(DataError::invalid(path, "contains no classes"));
    }
    Ok(classes)
}

#[cfg(test)]
mod tests {

    fn read(name: &str, text: &str) -> Result<Vec<(i64, String)>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        let classes = super::read(&path).map_err(|error| error.to_string())?;
        Ok(classes.into_iter().map(|class| (class.id, class.name)).collect())
    }

    #[test]
    fn all_kinds_of_class_files_give_the_same_classes() {
        let cases = [
            ("classes.csv", "red cell,0\nplatelets,1\n"),
            ("classes.csv", "\u{feff}\"red cell\",0\r\n\r\n platelets , 1\r\n"),
            ("classes.txt", "red cell\nplatelets\n"),
            ("classes.txt", "\u{feff}red cell\r\nplatelets\r\n\r\n"),
            ("data.yaml", "path: ../data\nnc: 2\nnames: [red cell, platelets]\n"),
            ("data.yml", "names:\n  0: red cell\n  1: platelets\ntrain: images/train\n"),
            ("data", "nc: 2\r\nnames:\r\n- red cell\r\n- 'platelets'\r\n"),
            ("data.yaml", "names: {'0': red cell, '1': platelets}"),
            ("data.yaml", "names: {red cell: 0, platelets: 1}"),
            ("data.yaml", "names: \"['red cell', 'platelets']\""),
        ];
        for (name, text) in cases {
            let expected = vec![(0, "red cell".to_owned()), (1, "platelets".to_owned())];
            assert_eq!(read(name, text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn ids_may_have_gaps_and_names_commas_and_digits() {
        assert_eq!(
            read("c.csv", "\"cat, big\",7\ndog,-1"),
            Ok(vec![(7, "cat, big".to_owned()), (-1, "dog".to_owned())])
        );
        assert_eq!(read("c.txt", "cat, big\n7"), Ok(vec![(0, "cat, big".to_owned()), (1, "7".to_owned())]));
        assert_eq!(read("c.yaml", "names: [0, '1']"), Ok(vec![(0, "0".to_owned()), (1, "1".to_owned())]));
    }

    #[test]
    fn invalid_class_files_are_refused() {
        let bomb: String =
            (1..30).map(|level| format!("a{level}: &a{level} [{0}, {0}]\n", format!("*a{}", level - 1))).collect();
        let cases = [
            ("c.csv", "class,id\ncat,0", "c.csv` line 1: expected `name,id`"),
            ("c.csv", "cat,0\n\ndog", "c.csv` line 3: expected `name,id`"),
            ("c.csv", "cat,0\ndog,0", "assigns the id 0 to both `cat` and `dog`"),
            ("c.txt", "cat\n\ndog", "c.txt` line 2: empty line"),
            ("c.txt", "cat\ncat", "assigns both ids 0 and 1 to the name `cat`"),
            ("c.txt", "", "contains no classes"),
            ("c.yaml", "train: a", "missing field `names`"),
            ("c.yaml", "names: cat", "neither a list nor a map"),
            ("c.yaml", "names: {a: cat}", "an entry of `names`"),
            ("c.yaml", "names: [[a]]", "an entry of `names`"),
            ("c.yaml", "names: {0: null}", "an entry of `names`"),
            ("c.yaml", "nc: 5\nnames: [a, b]", "`nc` is 5, but `names` has 2"),
            ("obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\n", "is Darknet's description"),
            ("c.yaml", &format!("a0: &a0 [x, x]\n{bomb}names: *a29"), "is not a YOLO `data.yaml`: "),
        ];
        for (name, text, message) in cases {
            let error = read(name, text).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }
}
