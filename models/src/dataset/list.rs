//! The image list of a split, with one name per line, such as VOC's `ImageSets/Main/train.txt`.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use super::images::split_extension;
use super::{DataError, Problem, ProblemKind, files};

/// Names of images, with or without extension and folders.
pub(super) struct ImageList {
    path: PathBuf,
    names: Vec<String>,
}

impl ImageList {
    /// Reads the lines of a file; empty lines are skipped.
    pub(super) fn read(path: &Path) -> Result<Self, DataError> {
        let text = files::read_text(path)?;
        let names = text.lines().map(str::trim).filter(|line| !line.is_empty());
        Ok(Self { path: path.to_owned(), names: names.map(str::to_owned).collect() })
    }

    /// The items whose names are in the list, in the order of `items`, and a problem for every list entry without a
    /// match. Names match if the path components that both have, from the end, are equal; the longest match wins.
    pub(super) fn select<T>(
        &self,
        items: Vec<T>,
        name_of: impl Fn(&T) -> &str,
    ) -> Result<(Vec<T>, Vec<Problem>), DataError> {
        let names: Vec<_> = items.iter().map(|item| Name::new(name_of(item))).collect();
        let mut by_stem: HashMap<&str, Vec<usize>> = HashMap::new();
        for (index, name) in names.iter().enumerate() {
            by_stem.entry(name.stem()).or_default().push(index);
        }
        let mut selected = BTreeSet::new();
        let mut problems = Vec::new();
        for line in &self.names {
            let entry = Name::new(line);
            let candidates = by_stem.get(entry.stem()).map_or(&[][..], Vec::as_slice);
            let quality = |index: &usize| entry.match_quality(&names[*index]);
            let matches: Vec<_> = candidates.iter().filter_map(|index| Some((quality(index)?, *index))).collect();
            let Some((best, first)) = matches.iter().copied().min_by_key(|(quality, _)| Reverse(*quality)) else {
                let location = line.clone();
                problems.push(Problem {
                    kind: ProblemKind::UnknownName,
                    location,
                    annotation: None,
                    found: String::new(),
                });
                continue;
            };
            for (_, index) in matches.into_iter().filter(|(quality, _)| *quality == best) {
                let (one, other) = (name_of(&items[first]), name_of(&items[index]));
                if one != other {
                    let reason =
                        format!("contains `{line}`, which matches `{one}` and `{other}`; add folders or the extension");
                    return Err(DataError::invalid(&self.path, reason));
                }
                selected.insert(index);
            }
        }
        let items = items.into_iter().enumerate().filter(|(index, _)| selected.contains(index));
        Ok((items.map(|(_, item)| item).collect(), problems))
    }
}

/// A name, split into path components.
struct Name<'a> {
    /// From the file name without extension to the outermost folder.
    components: Vec<&'a str>,
    extension: Option<&'a str>,
}

impl<'a> Name<'a> {
    fn new(name: &'a str) -> Self {
        let (stem, extension) = split_extension(name);
        let components = stem.rsplit(['/', '\\']).filter(|component| !matches!(*component, "" | "." | ".."));
        Self { components: components.collect(), extension }
    }

    fn stem(&self) -> &'a str {
        self.components.first().copied().unwrap_or_default()
    }

    /// How many components are equal, from the end, and whether the extensions are; none if the names do not match.
    fn match_quality(&self, other: &Self) -> Option<(usize, bool)> {
        let equal = self.components.iter().zip(&other.components).take_while(|(one, other)| one == other).count();
        let matches = equal > 0 && equal == self.components.len().min(other.components.len());
        matches.then_some((equal, self.extension == other.extension))
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
        let (selected, problems) = ImageList::read(&path)?.select(items, String::as_str)?;
        Ok((selected, problems.into_iter().map(|problem| problem.location).collect()))
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
            let (selected, unknown) = select(lines, &items).unwrap();
            assert_eq!((selected, unknown), (items[..2].iter().map(|item| (*item).to_owned()).collect(), vec![]));
        }
    }

    #[test]
    fn names_without_a_match_are_problems() {
        let (selected, unknown) = select("a\nd\nother/b.jpg\n..\n", &["a.jpg", "sub/b.jpg"]).unwrap();
        assert_eq!(
            (selected, unknown),
            (vec!["a.jpg".to_owned()], ["d", "other/b.jpg", ".."].map(str::to_owned).to_vec())
        );
    }

    #[test]
    fn longest_match_wins_and_a_tie_is_an_error() {
        let items = ["a.jpg", "a.png", "x/b.jpg", "y/b.jpg", "y/c.jpg", "c.jpg"];
        let (selected, _) = select("a.png\ny/b\nimages/y/c.jpg", &items).unwrap();
        assert_eq!(selected, ["a.png", "y/b.jpg", "y/c.jpg"]);
        for (line, one, other) in [("a", "a.jpg", "a.png"), ("b.jpg", "x/b.jpg", "y/b.jpg")] {
            let error = select(line, &items).unwrap_err().to_string();
            assert!(error.contains(&format!("contains `{line}`, which matches `{one}` and `{other}`")), "{error}");
        }
    }

    #[test]
    fn items_with_the_same_name_are_selected_together() {
        assert_eq!(select("a", &["a.jpg", "b.jpg", "a.jpg"]).unwrap().0, ["a.jpg", "a.jpg"]);
        assert_eq!(select("", &["a.jpg"]).unwrap().0, [""; 0]);
    }
}
