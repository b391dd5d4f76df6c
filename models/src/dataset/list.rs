//! The list of a part: which images belong to it, one name per line, as in VOC's `ImageSets/Main/train.txt`.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use super::error::DataError;
use super::names::Names;
use super::report::{Problem, ProblemKind};
use super::text;

/// Names of images, with or without extension and folders.
pub(super) struct List {
    path: PathBuf,
    names: Vec<String>,
}

impl List {
    /// Reads the lines of a file; empty ones are skipped.
    pub(super) fn read(path: &Path) -> Result<Self, DataError> {
        let text = text::read_text(path)?;
        let names = text.lines().map(str::trim).filter(|line| !line.is_empty());
        Ok(Self { path: path.to_owned(), names: names.map(str::to_owned).collect() })
    }

    /// The items whose names are in the list, in their order, and a problem for every name that matches none.
    pub(super) fn select<T>(
        &self,
        items: Vec<T>,
        name_of: impl Fn(&T) -> &str,
    ) -> Result<(Vec<T>, Vec<Problem>), DataError> {
        let names = Names::new(items.iter().map(&name_of));
        let mut chosen = BTreeSet::new();
        let mut problems = Vec::new();
        // A line that is there twice selects no more.
        let mut seen = HashSet::new();
        for line in self.names.iter().filter(|line| seen.insert(*line)) {
            let found = names.find(line);
            if found.is_empty() {
                let (kind, location) = (ProblemKind::UnknownName, line.clone());
                problems.push(Problem { kind, location, annotation: None, found: String::new() });
            }
            let mut matching = found.iter().map(|index| name_of(&items[*index]));
            let first = matching.next().unwrap_or_default();
            if let Some(other) = matching.find(|name| *name != first) {
                let reason =
                    format!("contains `{line}`, which matches `{first}` and `{other}`; add folders or the extension");
                return Err(DataError::invalid(&self.path, reason));
            }
            chosen.extend(found.iter().copied());
        }
        let items = items.into_iter().enumerate().filter(|(index, _)| chosen.contains(index));
        Ok((items.map(|(_, item)| item).collect(), problems))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn select(lines: &str, items: &[&str]) -> Result<(Vec<String>, Vec<String>), DataError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list.txt");
        std::fs::write(&path, lines).unwrap();
        let items = items.iter().map(|item| (*item).to_owned()).collect();
        let (chosen, problems) = List::read(&path)?.select(items, String::as_str)?;
        Ok((chosen, problems.into_iter().map(|problem| problem.location).collect()))
    }

    #[test]
    fn names_match_with_or_without_extension_and_folders() {
        let items = ["../photos/a.jpg", "../photos/b.v1.jpg", "c.PNG"];
        for lines in [
            "a\nb.v1\n",
            "b.v1.jpg\r\n\r\na.jpg\r\n",
            "\u{feff}/home/me/photos/a.jpg\nphotos/b.v1.png",
            "./photos/a\n.\\photos\\b.v1",
            "a\na\nb.v1.jpg",
        ] {
            let (chosen, unknown) = select(lines, &items).unwrap();
            assert_eq!((chosen, unknown), (items[..2].iter().map(|item| (*item).to_owned()).collect(), vec![]));
        }
    }

    #[test]
    fn names_without_match_are_problems() {
        let (chosen, unknown) = select("a\nd\nother/b.jpg\n..\n", &["a.jpg", "sub/b.jpg"]).unwrap();
        assert_eq!(
            (chosen, unknown),
            (vec!["a.jpg".to_owned()], ["d", "other/b.jpg", ".."].map(str::to_owned).to_vec())
        );
    }

    #[test]
    fn the_longest_match_wins_and_a_tie_is_an_error() {
        let items = ["a.jpg", "a.png", "x/b.jpg", "y/b.jpg", "y/c.jpg", "c.jpg"];
        let (chosen, _) = select("a.png\ny/b\nimages/y/c.jpg", &items).unwrap();
        assert_eq!(chosen, ["a.png", "y/b.jpg", "y/c.jpg"]);
        for (line, one, other) in [("a", "a.jpg", "a.png"), ("b.jpg", "x/b.jpg", "y/b.jpg")] {
            let error = select(line, &items).unwrap_err().to_string();
            assert!(error.contains(&format!("contains `{line}`, which matches `{one}` and `{other}`")), "{error}");
        }
    }

    #[test]
    fn items_of_the_same_name_are_selected_together() {
        assert_eq!(select("a", &["a.jpg", "b.jpg", "a.jpg"]).unwrap().0, ["a.jpg", "a.jpg"]);
        assert_eq!(select("", &["a.jpg"]).unwrap().0, [""; 0]);
    }
}
