//! Matching the names of images in annotations and lists with those of files, however a program wrote them.

use std::collections::HashMap;

use percent_encoding::percent_decode_str;
use unicode_normalization::UnicodeNormalization;

use super::folder::split_extension;

/// Names, found by other spellings of them: with or without extension and outer folders, with `\` for `/`, percent-encoded,
/// with a query as in `a.jpg?v=1`, or in another Unicode normal form.
pub(super) struct Names {
    /// Indices of the names with these suffixes. A search only looks up a few of them, because all names may end alike.
    by_suffix: HashMap<Suffix, Vec<usize>>,
}

/// The end of a name.
#[derive(PartialEq, Eq, Hash)]
struct Suffix {
    /// The last parts, without extension, joined with `/`.
    parts: String,
    /// The extension, or any.
    extension: Option<String>,
    /// Whether the name has no other parts.
    is_all: bool,
}

/// The parts of a name, in normal form C.
struct Name {
    /// Without extension, from the outermost folder to the file.
    parts: Vec<String>,
    extension: String,
}

impl Names {
    pub(super) fn new<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let mut by_suffix: HashMap<_, Vec<_>> = HashMap::new();
        for (index, name) in names.enumerate() {
            let name = Name::new(name);
            for length in 1..=name.parts.len() {
                for has_extension in [false, true] {
                    by_suffix.entry(name.suffix(length, has_extension, false)).or_default().push(index);
                    if length == name.parts.len() {
                        by_suffix.entry(name.suffix(length, has_extension, true)).or_default().push(index);
                    }
                }
            }
        }
        Self { by_suffix }
    }

    /// Indices of the names that agree longest with this one. Two names match if they are the same from the end on, as far as
    /// both go.
    pub(super) fn find(&self, name: &str) -> &[usize] {
        let decoded = percent_decode_str(name).decode_utf8().ok();
        let decoded = decoded.as_deref().filter(|decoded| *decoded != name);
        let without_query = decoded.unwrap_or(name).rsplit_once('?').map(|(before, _)| before);
        let spellings = [Some(name), decoded, without_query].into_iter().flatten();
        spellings.map(|name| self.find_spelled(name)).find(|found| !found.is_empty()).unwrap_or_default()
    }

    fn find_spelled(&self, name: &str) -> &[usize] {
        let name = Name::new(name);
        let all = name.parts.len();
        // The longest agreement first, then that of the extension, then names of as many parts. Names with more parts agree in
        // all of this one's.
        let suffixes = (1..=all).rev().flat_map(|length| {
            let exact = if length == all { &[true, false][..] } else { &[true] };
            [true, false]
                .into_iter()
                .flat_map(move |extension| exact.iter().map(move |exact| (length, extension, *exact)))
        });
        let mut found = suffixes
            .filter_map(|(length, extension, is_all)| self.by_suffix.get(&name.suffix(length, extension, is_all)));
        found.next().map_or(&[], Vec::as_slice)
    }
}

impl Name {
    fn new(name: &str) -> Self {
        let name: String = name.nfc().collect();
        let (stem, extension) = split_extension(&name);
        let parts = stem.split(['/', '\\']).filter(|part| !matches!(*part, "" | "." | ".."));
        Self { parts: parts.map(str::to_owned).collect(), extension: extension.unwrap_or_default().to_owned() }
    }

    /// The last `length` parts.
    fn suffix(&self, length: usize, has_extension: bool, is_all: bool) -> Suffix {
        let parts = self.parts[self.parts.len() - length..].join("/");
        Suffix { parts, extension: has_extension.then(|| self.extension.clone()), is_all }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_in_other_spellings() {
        let files = ["café/a b.jpg", "x/p0.jpg", "y/p0.jpg", "y/q.png", "q.jpg", "100%25.jpg", "what?.jpg"];
        let names = Names::new(files.into_iter());
        let cases: [(&str, &[&str]); 17] = [
            ("cafe\u{301}/a b.jpg", &["café/a b.jpg"]),
            ("caf%C3%A9/a%20b.jpg", &["café/a b.jpg"]),
            ("C:\\data\\café\\a b.jpg", &["café/a b.jpg"]),
            ("a b", &["café/a b.jpg"]),
            ("..\\..\\x\\p0.jpg", &["x/p0.jpg"]),
            ("./y/p0", &["y/p0.jpg"]),
            ("z/p0.jpg", &[]),
            ("p0.jpg", &["x/p0.jpg", "y/p0.jpg"]),
            ("q", &["q.jpg"]),
            ("q.png", &["y/q.png"]),
            ("y/q.jpg", &["y/q.png"]),
            ("100%25.jpg", &["100%25.jpg"]),
            ("", &[]),
            ("q.jpg?v=1", &["q.jpg"]),
            ("caf%C3%A9/a%20b.jpg?v=1&w=2", &["café/a b.jpg"]),
            ("in/what?.jpg", &["what?.jpg"]),
            ("?v=1", &[]),
        ];
        for (name, expected) in cases {
            let found: Vec<_> = names.find(name).iter().map(|index| files[*index]).collect();
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn names_that_all_end_alike_are_found_at_once() {
        const COUNT: usize = 50_000;
        let files: Vec<_> = (0..COUNT).map(|index| format!("{index}/images/img.jpg")).collect();
        let names = Names::new(files.iter().map(String::as_str));
        for (index, file) in files.iter().enumerate() {
            assert_eq!(names.find(file), [index]);
            assert_eq!(names.find("img.png").len(), COUNT);
        }
    }
}
