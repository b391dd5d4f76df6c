//! Names of images, one per line, from a stream that may have no end.

use std::io::{self, BufRead};
use std::path::PathBuf;

/// Longer lines are no names: eight times what Linux takes for one.
const MOST_BYTES: usize = 32 << 10;

/// So much of a line that is too long stands in its place.
const SHOWN_BYTES: usize = 64;

/// A line that names no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {number} is longer than {MOST_BYTES} bytes, and no name of a file")]
pub struct BadLine {
    /// Its number, from 1.
    pub number: usize,
    /// How it begins.
    pub beginning: String,
}

/// The names in a stream. Empty lines are skipped, and so is a carriage return before the end of a line; a line too long is an
/// error by itself, after which the next comes.
#[derive(Debug)]
pub struct Lines<R> {
    reader: R,
    number: usize,
}

impl<R: BufRead> Lines<R> {
    /// The names that `reader` has.
    pub fn new(reader: R) -> Self {
        Self { reader, number: 0 }
    }

    /// The next line without its end, cut after one byte too many; none at the end of the stream.
    fn read(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        let mut any = false;
        loop {
            let available = match self.reader.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if available.is_empty() {
                return Ok(any.then_some(line));
            }
            any = true;
            let end = available.iter().position(|byte| *byte == b'\n');
            let part = &available[..end.unwrap_or(available.len())];
            let room = (MOST_BYTES + 1).saturating_sub(line.len());
            line.extend_from_slice(&part[..part.len().min(room)]);
            let read = end.map_or(available.len(), |end| end + 1);
            self.reader.consume(read);
            if end.is_some() {
                return Ok(Some(line));
            }
        }
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    /// A name, or why a line is none; or why the stream ends early.
    type Item = io::Result<Result<PathBuf, BadLine>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let mut line = match self.read() {
                Ok(line) => line?,
                Err(error) => return Some(Err(error)),
            };
            self.number += 1;
            if line.len() > MOST_BYTES {
                let beginning = String::from_utf8_lossy(&line[..SHOWN_BYTES]).into_owned();
                return Some(Ok(Err(BadLine { number: self.number, beginning })));
            }
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            if !line.is_empty() {
                return Some(Ok(Ok(path(line))));
            }
        }
    }
}

#[cfg(unix)]
fn path(bytes: Vec<u8>) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(not(unix))]
fn path(bytes: Vec<u8>) -> PathBuf {
    String::from_utf8_lossy(&bytes).into_owned().into()
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;

    /// With a buffer smaller than the lines.
    fn lines(text: &[u8]) -> Vec<Result<PathBuf, BadLine>> {
        Lines::new(BufReader::with_capacity(7, text)).map(Result::unwrap).collect()
    }

    #[test]
    fn every_line_is_a_name_and_empty_ones_are_none() {
        let expected = ["a.jpg", "with space, comma.png", " b"].map(|name| Ok(PathBuf::from(name)));
        assert_eq!(lines(b"a.jpg\r\n\nwith space, comma.png\n\r\n b"), expected);
        assert!(lines(b"").is_empty() && lines(b"\n\n").is_empty());
    }

    #[test]
    fn a_line_too_long_is_one_error_and_the_next_one_comes() {
        let text = [vec![b'x'; 3 * MOST_BYTES], b"\na.jpg\n".to_vec()].concat();
        let found = lines(&text);
        let bad = BadLine { number: 1, beginning: "x".repeat(SHOWN_BYTES) };
        assert_eq!(found, [Err(bad), Ok("a.jpg".into())]);
        assert_eq!(lines(&[b'y'; MOST_BYTES])[0], Ok("y".repeat(MOST_BYTES).into()));
    }

    #[cfg(unix)]
    #[test]
    fn bytes_that_are_no_text_are_a_name_too() {
        use std::os::unix::ffi::OsStrExt;
        assert_eq!(lines(b"\xff\xfe.jpg\n")[0].as_ref().unwrap().as_os_str().as_bytes(), b"\xff\xfe.jpg");
    }
}
