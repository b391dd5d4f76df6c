//! Reading JSON from many programs, each of which writes numbers and ids in its own way.

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
use serde::de::{Deserialize, DeserializeOwned, Deserializer, Error, SeqAccess, Unexpected, Visitor};
use serde_json::value::RawValue;

use super::error::DataError;
use super::report::{Problem, ProblemKind};
use super::text;

/// A number, also as text or truth value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Number(pub(crate) f64);

/// A whole number, also as text or with decimals.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Whole(pub(crate) i64);

/// A whole number as [`Whole`] takes it, or else any text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Id {
    Whole(i64),
    Text(String),
}

/// The entries of a list, each parsed or with the reason why it cannot be, so that a bad one does not spoil the file. They
/// stay in the pieces in which they were parsed, since copying them takes longer than using them.
pub(crate) struct Entries<T>(Vec<Vec<Result<T, String>>>);

/// Four numbers, or how many there are instead.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Four {
    Numbers([f64; 4]),
    Other(usize),
}

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
            if length == 0 {
                piece.truncate(piece.trim_ascii_end().strip_suffix(b"]")?.len());
            } else if let Some(cut) = last_cut(&piece) {
                rest = piece.split_off(cut + 1);
                piece.truncate(cut);
            } else {
                rest = piece;
                continue;
            }
            let parsed = &parsed;
            scope.spawn(move |_| {
                let entries = str::from_utf8(&piece).ok().and_then(parse_piece);
                parsed.lock().unwrap_or_else(PoisonError::into_inner).insert(number, entries);
            });
            if length == 0 {
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
        deserializer.deserialize_seq(Lenient::<Self>(PhantomData))
    }
}

impl<'de, T: Deserialize<'de> + Send> Visitor<'de> for Lenient<Entries<T>> {
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

impl Four {
    /// The numbers of a box.
    pub(crate) fn bbox(self) -> Result<[f64; 4], String> {
        match self {
            Self::Numbers(numbers) => Ok(numbers),
            Self::Other(count) => Err(format!("bbox: {count} numbers, expected x, y, width, height")),
        }
    }
}

impl Id {
    /// The number, unless it is another text.
    pub(crate) fn whole(&self) -> Option<i64> {
        match self {
            Self::Whole(number) => Some(*number),
            Self::Text(_) => None,
        }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Whole(number) => write!(formatter, "{number}"),
            Self::Text(text) => write!(formatter, "`{text}`"),
        }
    }
}

/// The whole number equal to `number`.
fn whole(number: f64) -> Option<i64> {
    /// From here on, not every whole number is a float.
    const EXACT: f64 = (1u64 << 53) as f64;
    (number.fract() == 0.0 && number.abs() <= EXACT).then_some(number as i64)
}

/// Takes what `T` is made of.
struct Lenient<T>(PhantomData<T>);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Lenient::<Self>(PhantomData))
    }
}

impl Visitor<'_> for Lenient<Number> {
    type Value = Number;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a number")
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Number, E> {
        Ok(Number(number))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Number, E> {
        Ok(Number(number as f64))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Number, E> {
        Ok(Number(number as f64))
    }

    fn visit_bool<E: Error>(self, truth: bool) -> Result<Number, E> {
        Ok(Number(f64::from(u8::from(truth))))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Number, E> {
        text.trim().parse().map(Number).map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Lenient::<Self>(PhantomData))
    }
}

impl Visitor<'_> for Lenient<Id> {
    type Value = Id;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a whole number or a text")
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Id, E> {
        Ok(Id::Whole(number))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Id, E> {
        i64::try_from(number).map(Id::Whole).map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &self))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Id, E> {
        whole(number).map(Id::Whole).ok_or_else(|| E::invalid_value(Unexpected::Float(number), &self))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Id, E> {
        self.visit_string(text.to_owned())
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Id, E> {
        let trimmed = text.trim();
        let number = trimmed.parse().ok().or_else(|| trimmed.parse().ok().and_then(whole));
        Ok(number.map_or_else(|| Id::Text(text), Id::Whole))
    }
}

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Id::deserialize(deserializer)? {
            Id::Whole(number) => Ok(Self(number)),
            Id::Text(text) => Err(D::Error::invalid_value(Unexpected::Str(&text), &"a whole number")),
        }
    }
}

impl<'de> Deserialize<'de> for Four {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Lenient::<Self>(PhantomData))
    }
}

impl<'de> Visitor<'de> for Lenient<Four> {
    type Value = Four;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a list of four numbers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Four, A::Error> {
        let (mut numbers, mut count) = ([0.0; 4], 0);
        while let Some(Number(number)) = list.next_element()? {
            if let Some(slot) = numbers.get_mut(count) {
                *slot = number;
            }
            count += 1;
        }
        Ok(if count == numbers.len() { Four::Numbers(numbers) } else { Four::Other(count) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_ids_are_read_in_any_notation() {
        for (text, number) in [("1", 1.0), ("-1.5", -1.5), ("\" 2.5\"", 2.5), ("true", 1.0), ("1e3", 1000.0)] {
            assert_eq!(serde_json::from_str::<Number>(text).unwrap(), Number(number), "{text}");
        }
        for text in ["\"x\"", "null", "[]", "{}", "\"\""] {
            serde_json::from_str::<Number>(text).unwrap_err();
        }
        for (text, number) in [("7", 7), ("-7", -7), ("7.0", 7), ("\"7\"", 7), ("\"7.0\"", 7), ("7e0", 7)] {
            assert_eq!(serde_json::from_str::<Whole>(text).unwrap(), Whole(number), "{text}");
            assert_eq!(serde_json::from_str::<Id>(text).unwrap(), Id::Whole(number), "{text}");
        }
        for text in ["1.5", "1e300", "18446744073709551615", "true", "null"] {
            serde_json::from_str::<Id>(text).unwrap_err();
        }
        assert_eq!(serde_json::from_str::<Id>("\"p0.jpg\"").unwrap(), Id::Text("p0.jpg".to_owned()));
        let error = serde_json::from_str::<Whole>("\"p0.jpg\"").unwrap_err().to_string();
        assert!(error.contains("\"p0.jpg\", expected a whole number"), "{error}");
        for (text, four) in [("[1, \"2\", 3.0, 4]", Four::Numbers([1.0, 2.0, 3.0, 4.0])), ("[]", Four::Other(0))] {
            assert_eq!(serde_json::from_str::<Four>(text).unwrap(), four);
        }
        assert_eq!(serde_json::from_str::<Four>("[1, 2, 3, 4, 5]").unwrap(), Four::Other(5));
    }

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
