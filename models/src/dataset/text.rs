//! Reading text and numbers from annotation files.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use csv::{Position, ReaderBuilder, StringRecord, Trim};
use rayon::prelude::*;

use super::error::DataError;

/// Longer files are refused.
pub(super) const MAX_BYTES: u64 = 1 << 32;

/// Reads a file of text, as UTF-8 without byte order mark.
pub(super) fn read_bytes(path: &Path) -> Result<Vec<u8>, DataError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| {
        let expected = file.metadata().map_or(0, |metadata| metadata.len()).min(MAX_BYTES);
        bytes.reserve(expected as usize + 1);
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes)
    });
    read.map_err(cannot_read(path))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(DataError::invalid(path, format!("is larger than {} MiB", MAX_BYTES >> 20)));
    }
    Ok(to_utf8(bytes))
}

/// UTF-8 without byte order mark. Windows writes UTF-16, which is converted.
pub(super) fn to_utf8(mut bytes: Vec<u8>) -> Vec<u8> {
    let utf16 = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let units: Vec<_> = bytes.as_chunks().0.iter().map(|pair| unit(*pair)).collect();
        String::from_utf16_lossy(&units).into_bytes()
    };
    match &bytes[..] {
        [0xEF, 0xBB, 0xBF, ..] => _ = bytes.drain(..3),
        [0xFF, 0xFE, rest @ ..] => bytes = utf16(rest, u16::from_le_bytes),
        [0xFE, 0xFF, rest @ ..] => bytes = utf16(rest, u16::from_be_bytes),
        _ => {}
    }
    bytes
}

/// Reads a text file, without byte order mark.
pub(super) fn read_text(path: &Path) -> Result<String, DataError> {
    String::from_utf8(read_bytes(path)?).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + valid.iter().filter(|byte| **byte == b'\n').count() as u64;
        DataError::line(path, line, "not UTF-8 text; save the file as UTF-8")
    })
}

/// The rows of a CSV text, each with the line it begins on. Rows may differ in length. The separator is the one of comma,
/// semicolon and tab that is most frequent in the first line. Spaces around fields are removed, those before quotes too.
pub(super) fn rows(path: &Path, text: &str) -> Vec<Result<(u64, StringRecord), DataError>> {
    let mut builder = ReaderBuilder::new();
    let first = text.trim_start().lines().next().unwrap_or_default();
    let count = |separator: &u8| first.bytes().filter(|byte| byte == separator).count();
    // Of equally frequent ones, the last.
    let separator = [b'\t', b';', b','].into_iter().max_by_key(count).unwrap_or(b',');
    let builder = builder.delimiter(separator).has_headers(false).flexible(true).trim(Trim::All);
    let text = without_spaces_before_quotes(text, char::from(separator));
    let rows = builder.from_reader(text.as_bytes()).into_records().map(|row| match row {
        Ok(row) => Ok((row.position().map_or(0, |position| line(&text, position)), row)),
        Err(error) => Err(DataError::invalid(path, format!("is not CSV: {error}"))),
    });
    rows.collect()
}

/// CSV readers take a quote for the beginning of a quoted field only at the beginning of the field.
fn without_spaces_before_quotes(text: &str, separator: char) -> Cow<'_, str> {
    if !text.contains(" \"") {
        return text.into();
    }
    let mut kept = String::with_capacity(text.len());
    let (mut at_start, mut is_quoted) = (true, false);
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        if at_start && character == ' ' {
            let without_spaces = rest.trim_start_matches(' ');
            // All spaces at once: each of a million would look at all that follow.
            let skipped = rest.len() - without_spaces.len();
            kept.push_str(if without_spaces.starts_with('"') { "" } else { &rest[..skipped] });
            (at_start, rest) = (without_spaces.starts_with('"'), without_spaces);
            continue;
        }
        rest = &rest[character.len_utf8()..];
        let is_quote = character == '"';
        kept.push(character);
        // A doubled quote ends the field and begins it again.
        is_quoted = if is_quote { (at_start || kept.ends_with("\"\"")) && !is_quoted } else { is_quoted };
        at_start = !is_quoted && (character == separator || character == '\n');
    }
    kept.into()
}

/// The line that a row begins on. The position is that before any empty lines.
fn line(text: &str, position: &Position) -> u64 {
    let rest = text.as_bytes().get(position.byte() as usize..).unwrap_or_default();
    let before = rest.iter().take_while(|byte| matches!(byte, b'\r' | b'\n'));
    position.line() + before.filter(|byte| **byte == b'\n').count() as u64
}

/// Applies `read` to each item, in parallel. Of several errors, the first in the order of the items is returned.
pub(super) fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    read: impl Fn(&T) -> Result<R, DataError> + Send + Sync,
) -> Result<Vec<R>, DataError> {
    let results: Vec<_> = items.par_iter().map(read).collect();
    results.into_iter().collect()
}

/// Parses a number.
pub(super) fn number(text: &str) -> Result<f64, String> {
    text.parse().map_err(|_| format!("{} is not a number", quoted(text)))
}

/// Parses a whole number, which may be written with decimals or an exponent.
pub(super) fn whole_number(text: &str) -> Result<u32, String> {
    let number = number(text)?;
    let whole = number.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&number);
    if whole { Ok(number as u32) } else { Err(format!("{} is not a non-negative integer", quoted(text))) }
}

/// The text for a message, shortened.
fn quoted(text: &str) -> String {
    const SHOWN: usize = 40;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("`{}...`", &text[..end]),
        None => format!("`{text}`"),
    }
}

/// Adds the path to an error of the file system.
pub(super) fn cannot_read(path: &Path) -> impl FnOnce(io::Error) -> DataError {
    move |reason| DataError::Read { path: path.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn byte_order_marks_are_removed_and_other_encodings_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        fs::write(&path, b"\xEF\xBB\xBFdog").unwrap();
        assert_eq!(read_text(&path).unwrap(), "dog");
        fs::write(&path, b"dog\ncaf\xE9").unwrap();
        let error = read_text(&path).unwrap_err().to_string();
        assert!(error.contains("a.txt` line 2: not UTF-8 text"), "{error}");
        let error = read_text(folder.path()).unwrap_err().to_string();
        assert!(error.starts_with("cannot read `"), "{error}");
    }

    #[test]
    fn the_first_of_several_errors_is_returned() {
        let items: Vec<u64> = (0..1000).collect();
        let read = |item: &u64| match item % 7 {
            5 => Err(DataError::line(Path::new("a"), *item, "")),
            _ => Ok(*item),
        };
        assert!(matches!(in_parallel(&items, read), Err(DataError::Line { line: 5, .. })));
        assert_eq!(in_parallel(&items, |item| Ok(*item)).unwrap(), items);
    }

    #[test]
    fn whole_numbers_may_have_decimals() {
        for (text, expected) in [("12", Ok(12)), ("3.0", Ok(3)), ("2e1", Ok(20))] {
            assert_eq!(whole_number(text), expected);
        }
        for text in ["", "x", "-1", "1.5", "nan", "inf", "4294967296", "1 2"] {
            let error = whole_number(text).unwrap_err();
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
        assert_eq!(number("1.25"), Ok(1.25));
        assert!(number(&"ä".repeat(1000)).unwrap_err().ends_with("ä...` is not a number"));
    }
}
