//! Matching the names of images in annotations and lists with those of files, however a program wrote them.

use std::cmp::Reverse;
use std::collections::HashMap;

use percent_encoding::percent_decode_str;
use unicode_normalization::UnicodeNormalization;

use super::folder::split_extension;

/// Names, found by other spellings of them: with or without extension and outer folders, with `\` for `/`, percent-encoded,
/// or in another Unicode normal form.
pub(super) struct Names {
    names: Vec<Name>,
    by_stem: HashMap<String, Vec<usize>>,
}

/// The parts of a name, in normal form C.
struct Name {
    /// From the file, without extension, to the outermost folder.
    parts: Vec<String>,
    extension: Option<String>,
}

impl Names {
    pub(super) fn new<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let names: Vec<_> = names.map(Name::new).collect();
        let mut by_stem: HashMap<_, Vec<_>> = HashMap::new();
        for (index, name) in names.iter().enumerate() {
            by_stem.entry(name.stem().to_owned()).or_default().push(index);
        }
        Self { names, by_stem }
    }

    /// Indices of the names that agree longest with this one. Two names match if they are the same from the end on, as far as
    /// both go.
    pub(super) fn find(&self, name: &str) -> Vec<usize> {
        let found = self.find_spelled(name);
        let decoded = percent_decode_str(name).decode_utf8().ok().filter(|decoded| decoded != name);
        if found.is_empty() { decoded.map_or(found, |decoded| self.find_spelled(&decoded)) } else { found }
    }

    fn find_spelled(&self, name: &str) -> Vec<usize> {
        let wanted = Name::new(name);
        let candidates = self.by_stem.get(wanted.stem()).map_or(&[][..], Vec::as_slice);
        let closeness = |index: &usize| Some((Reverse(wanted.closeness(&self.names[*index])?), *index));
        let matching: Vec<_> = candidates.iter().filter_map(closeness).collect();
        let best = matching.iter().map(|(closeness, _)| *closeness).min();
        matching.into_iter().filter(|(closeness, _)| Some(*closeness) == best).map(|(_, index)| index).collect()
    }
}

impl Name {
    fn new(name: &str) -> Self {
        let name: String = name.nfc().collect();
        let (stem, extension) = split_extension(&name);
        let parts = stem.rsplit(['/', '\\']).filter(|part| !matches!(*part, "" | "." | ".."));
        Self { parts: parts.map(str::to_owned).collect(), extension: extension.map(str::to_owned) }
    }

    fn stem(&self) -> &str {
        self.parts.first().map_or("", String::as_str)
    }

    /// The number of parts that agree from the end on, whether the extension does too, and whether that is all; none if the
    /// names contradict.
    fn closeness(&self, other: &Self) -> Option<(usize, bool, bool)> {
        let shared = self.parts.iter().zip(&other.parts).take_while(|(one, other)| one == other).count();
        let matches = shared > 0 && shared == self.parts.len().min(other.parts.len());
        matches.then_some((shared, self.extension == other.extension, self.parts.len() == other.parts.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_in_other_spellings() {
        let files = ["café/a b.jpg", "x/p0.jpg", "y/p0.jpg", "y/q.png", "q.jpg", "100%25.jpg"];
        let names = Names::new(files.into_iter());
        let cases: [(&str, &[&str]); 13] = [
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
        ];
        for (name, expected) in cases {
            let found: Vec<_> = names.find(name).into_iter().map(|index| files[index]).collect();
            assert_eq!(found, expected, "{name}");
        }
    }
}
