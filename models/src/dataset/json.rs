//! Reading JSON from many programs: lists whose entries are parsed one by one, in parallel.

mod lenient;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::marker::PhantomData;
use std::mem::{replace, take};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use memchr::memmem;
use rayon::prelude::*;
use serde::de::{Deserialize, DeserializeOwned, Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::error::DataError;
use super::report::{Problem, ProblemKind};
use super::text;
pub(crate) use lenient::{Four, Id, Number, Whole};

/// The entries of a list, each parsed or with the reason why it cannot be, so that a bad one does not spoil the file. They
/// stay in the pieces in which they were parsed, since copying them takes longer than using them.
pub(crate) struct Entries<T>(Vec<Vec<Result<T, String>>>);

/// Reads a file. `NaN` and `Infinity`, which Python writes and JSON lacks, become text.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    let bytes = text::read_bytes(path)?;
    let has_nan = ["NaN", "Infinity"].iter().any(|word| memmem::find(&bytes, word.as_bytes()).is_some());
    Ok(if has_nan { quote_nan(&bytes) } else { bytes })
}

/// Reads a file that is a list.
pub(crate) fn read_list<T: DeserializeOwned + Send>(
    path: &Path,
    expected: &'static str,
) -> Result<Entries<T>, DataError> {
    match read_in_pieces(path) {
        Some(entries) => Ok(entries),
        None => parse(path, &read(path)?, expected),
    }
}

/// Parses a text.
pub(crate) fn parse<'a, T: Deserialize<'a>>(
    path: &Path,
    bytes: &'a [u8],
    expected: &'static str,
) -> Result<T, DataError> {
    let other = || other_format(bytes).filter(|found| !expected.starts_with(found));
    serde_json::from_slice(bytes).map_err(|reason| match (other(), str::from_utf8(bytes)) {
        (Some(found), _) => DataError::invalid(path, format!("is {found}, expected {expected}")),
        (None, Err(_)) => DataError::invalid(path, "is not UTF-8 text; save the file as UTF-8"),
        (None, Ok(_)) => DataError::Json { path: path.to_owned(), expected, reason },
    })
}

/// Reads a list of objects in pieces, which other threads parse meanwhile. A piece ends where the end of an object is
/// followed by the start of another. If that is not between two entries, the piece is no complete JSON, so the result is
/// `None`, as for an entry that is not as expected.
fn read_in_pieces<T: DeserializeOwned + Send>(path: &Path) -> Option<Entries<T>> {
    const PIECE: u64 = 1 << 20;
    let mut file = File::open(path).ok()?;
    // Others cannot be read again.
    file.metadata().ok().filter(|metadata| metadata.is_file() && metadata.len() <= text::MAX_BYTES)?;
    let parsed = Mutex::new(BTreeMap::new());
    rayon::in_place_scope(|scope| {
        let mut rest = Vec::new();
        for number in 0.. {
            let mut piece = take(&mut rest);
            let length = (&mut file).take(PIECE).read_to_end(&mut piece).ok()?;
            if number == 0 {
                let start = piece.trim_ascii_start().strip_prefix(b"[")?.len();
                piece.drain(..piece.len() - start);
            }
            let is_last = (length as u64) < PIECE;
            if is_last {
                piece.truncate(piece.trim_ascii_end().strip_suffix(b"]")?.len());
            } else {
                // Without a cut, a longer piece would be searched again and again.
                let cut = last_cut(&piece)?;
                rest = piece.split_off(cut + 1);
                piece.truncate(cut);
            }
            let parsed = &parsed;
            scope.spawn(move |_| {
                let entries = str::from_utf8(&piece).ok().and_then(parse_piece);
                parsed.lock().unwrap_or_else(PoisonError::into_inner).insert(number, entries);
            });
            if is_last {
                return Some(());
            }
        }
        None
    })?;
    let parsed = parsed.into_inner().unwrap_or_else(PoisonError::into_inner);
    parsed.into_values().collect::<Option<_>>().map(Entries)
}

/// The position of the last comma between two objects.
fn last_cut(bytes: &[u8]) -> Option<usize> {
    memchr::memrchr_iter(b',', bytes).find(|comma| {
        let (before, after) = (&bytes[..*comma], &bytes[comma + 1..]);
        before.trim_ascii_end().ends_with(b"}") && after.trim_ascii_start().starts_with(b"{")
    })
}

/// Parses entries separated by commas.
fn parse_piece<T: DeserializeOwned>(mut rest: &str) -> Option<Vec<Result<T, String>>> {
    let mut entries = Vec::new();
    loop {
        let mut stream = serde_json::Deserializer::from_str(rest).into_iter();
        entries.push(Ok(stream.next()?.ok()?));
        rest = rest[stream.byte_offset()..].trim_ascii_start();
        if rest.is_empty() {
            return Some(entries);
        }
        rest = rest.strip_prefix(',')?;
    }
}

/// What a file is that is not the JSON expected.
fn other_format(bytes: &[u8]) -> Option<&'static str> {
    let head = &bytes[..bytes.len().min(1 << 16)];
    let has = |word: &str| memmem::find(head, word.as_bytes()).is_some();
    let starts = |signature: &[u8]| head.starts_with(signature);
    match () {
        () if starts(b"PK\x03\x04") => Some("a zip archive (unpack it first)"),
        () if starts(&[0x1f, 0x8b]) => Some("compressed with gzip (unpack it first)"),
        () if has("\"rectanglelabels\"") || has("\"polygonlabels\"") => {
            Some("a Label Studio project (export it as COCO)")
        }
        () if has("\"shape_attributes\"") => Some("a VIA project (export it as COCO)"),
        () if has("\"shapes\"") && has("\"imageData\"") => Some("a LabelMe file (convert the files to COCO)"),
        () if head.trim_ascii_start().starts_with(b"[") && has("\"category_id\"") && has("\"score\"") => {
            Some("a COCO result file")
        }
        () if has("\"categories\"") && has("\"annotations\"") && !head.trim_ascii_start().starts_with(b"{") => {
            Some("a list of data sets (take out the one to use)")
        }
        () => None,
    }
}

/// Puts quotation marks around `NaN`, `Infinity` and `-Infinity` where they are not part of a text.
fn quote_nan(bytes: &[u8]) -> Vec<u8> {
    let mut quoted = Vec::with_capacity(bytes.len() + 1024);
    let mut rest = bytes;
    while let [byte, after @ ..] = rest {
        let length = match byte {
            b'"' => text_length(rest),
            b'N' | b'I' | b'-' => {
                let word = ["NaN", "Infinity", "-Infinity"].into_iter().find(|word| rest.starts_with(word.as_bytes()));
                if let Some(word) = word {
                    quoted.extend([b"\"", word.as_bytes(), b"\""].concat());
                    rest = &rest[word.len()..];
                    continue;
                }
                1
            }
            _ => 1 + after.iter().position(|byte| matches!(byte, b'"' | b'N' | b'I' | b'-')).unwrap_or(after.len()),
        };
        quoted.extend_from_slice(&rest[..length]);
        rest = &rest[length..];
    }
    quoted
}

/// Length of the text that `bytes` begin with, with its quotation marks.
fn text_length(bytes: &[u8]) -> usize {
    let mut escaped = false;
    let end = bytes.iter().skip(1).position(|byte| {
        let ends = !escaped && *byte == b'"';
        escaped = !escaped && *byte == b'\\';
        ends
    });
    end.map_or(bytes.len(), |end| end + 2)
}

impl<T: Send> Entries<T> {
    /// The entries of the list called `list`. The problem of a bad one names its index and field.
    pub(crate) fn named(self, list: &str) -> impl Iterator<Item = Result<T, Problem>> {
        self.0.into_iter().flatten().enumerate().map(move |(index, entry)| named(entry, list, index))
    }

    /// Converts the entries of the list called `list` in parallel, piece by piece.
    pub(crate) fn convert<R: Send>(self, list: &str, convert: impl Fn(Vec<T>) -> R + Sync) -> Result<Vec<R>, Problem> {
        let starts: Vec<_> = self.0.iter().scan(0, |start, piece| Some(replace(start, *start + piece.len()))).collect();
        let pieces = self.0.into_par_iter().zip(starts).map(|(piece, start)| {
            let entries = piece.into_iter().enumerate().map(|(index, entry)| named(entry, list, start + index));
            entries.collect::<Result<_, _>>().map(&convert)
        });
        let pieces: Vec<_> = pieces.collect();
        pieces.into_iter().collect()
    }
}

fn named<T>(entry: Result<T, String>, list: &str, index: usize) -> Result<T, Problem> {
    entry.map_err(|found| Problem {
        kind: ProblemKind::BadEntry,
        location: format!("{list}[{index}]"),
        annotation: None,
        found,
    })
}

impl<'de, T: Deserialize<'de> + Send> Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(EntriesVisitor(PhantomData))
    }
}

struct EntriesVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de> + Send> Visitor<'de> for EntriesVisitor<T> {
    type Value = Entries<T>;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a list")
    }

    /// Splits the list into entries, and parses them in other threads meanwhile.
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Entries<T>, A::Error> {
        /// Entries per task: so many that starting a task costs nothing beside them.
        const CHUNK: usize = 1024;
        let parsed = Mutex::new(BTreeMap::new());
        rayon::in_place_scope(|scope| {
            for number in 0.. {
                let mut chunk = Vec::with_capacity(CHUNK);
                while chunk.len() < CHUNK
                    && let Some(entry) = list.next_element::<&RawValue>()?
                {
                    chunk.push(entry);
                }
                if chunk.is_empty() {
                    break;
                }
                let parsed = &parsed;
                scope.spawn(move |_| {
                    let entries: Vec<_> = chunk.into_iter().map(parse_entry).collect();
                    parsed.lock().unwrap_or_else(PoisonError::into_inner).insert(number, entries);
                });
            }
            Ok(())
        })?;
        let parsed = parsed.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(Entries(parsed.into_values().collect()))
    }
}

/// Parses one entry. The error names the field.
fn parse_entry<'de, T: Deserialize<'de>>(entry: &'de RawValue) -> Result<T, String> {
    serde_json::from_str(entry.get()).map_err(|_| {
        // Once more, slower, to learn the field.
        let again: Result<T, _> =
            serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(entry.get()));
        again.err().map_or_else(String::new, |error| {
            let (path, reason) = (error.path().to_string(), error.inner().to_string());
            let reason = reason.split(" at line ").next().unwrap_or_default();
            if path == "." { reason.to_owned() } else { format!("{path}: {reason}") }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_is_quoted_outside_of_texts_only() {
        for (text, expected) in [
            (r#"{"NaN": [NaN, -1, 2], "a\"NaN": -Infinity}"#, r#"{"NaN": ["NaN", -1, 2], "a\"NaN": "-Infinity"}"#),
            (r#"["Infinity war.jpg", Infinity]"#, r#"["Infinity war.jpg", "Infinity"]"#),
            (r#"["NaN"#, r#"["NaN"#),
        ] {
            assert_eq!(String::from_utf8(quote_nan(text.as_bytes())).unwrap(), expected);
        }
    }
}
