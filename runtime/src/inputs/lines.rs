//! File names of images from a stream, one per line.

use std::ffi::OsString;
use std::io::{self, BufRead, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// Maximum length of a line: eight times Linux's limit of a path.
const MAX_BYTES: usize = 32 << 10;

/// Length of [`BadLine::prefix`].
const PREFIX_BYTES: usize = 64;

/// A line that is too long to be a file name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {number} is longer than {MAX_BYTES} bytes and cannot be a file name")]
pub struct BadLine {
    /// Line number, from 1.
    pub number: usize,
    /// The first bytes of the line.
    pub prefix: String,
}

/// The file names in a stream. Skips empty lines, and removes a carriage return at the end of a line. A line that is
/// too long gives an error, and the next line is read.
#[derive(Debug)]
pub struct Lines<R> {
    reader: R,
    number: usize,
}

impl<R: BufRead> Lines<R> {
    /// Reads file names from `reader`.
    pub fn new(reader: R) -> Self {
        Self { reader, number: 0 }
    }

    /// The next line without its line feed, truncated to `MAX_BYTES + 1` bytes; `None` at the end of the stream.
    fn read(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        if self.reader.by_ref().take(MAX_BYTES as u64 + 1).read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        } else if line.len() > MAX_BYTES {
            self.reader.skip_until(b'\n')?;
        }
        Ok(Some(line))
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    /// A file name or a bad line, or the error of reading the stream.
    type Item = io::Result<Result<PathBuf, BadLine>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let mut line = match self.read() {
                Ok(line) => line?,
                Err(error) => return Some(Err(error)),
            };
            self.number += 1;
            if line.len() > MAX_BYTES {
                let prefix = String::from_utf8_lossy(&line[..PREFIX_BYTES]).into_owned();
                return Some(Ok(Err(BadLine { number: self.number, prefix })));
            }
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            if !line.is_empty() {
                return Some(Ok(Ok(OsString::from_vec(line).into())));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;

    /// Reads through a buffer smaller than the lines.
    fn lines(text: &[u8]) -> Vec<Result<PathBuf, BadLine>> {
        Lines::new(BufReader::with_capacity(7, text)).map(Result::unwrap).collect()
    }

    #[test]
    fn every_non_empty_line_is_a_name() {
        let expected = ["a.jpg", "with space, comma.png", " b"].map(|name| Ok(PathBuf::from(name)));
        assert_eq!(lines(b"a.jpg\r\n\nwith space, comma.png\n\r\n b"), expected);
        assert!(lines(b"").is_empty() && lines(b"\n\n").is_empty());
    }

    #[test]
    fn a_line_that_is_too_long_is_an_error_and_the_next_line_is_read() {
        let text = [vec![b'x'; 3 * MAX_BYTES], b"\na.jpg\n".to_vec()].concat();
        let found = lines(&text);
        let bad = BadLine { number: 1, prefix: "x".repeat(PREFIX_BYTES) };
        assert_eq!(found, [Err(bad), Ok("a.jpg".into())]);
        assert_eq!(lines(&[b'y'; MAX_BYTES])[0], Ok("y".repeat(MAX_BYTES).into()));
    }

    #[test]
    fn a_name_need_not_be_utf8() {
        use std::os::unix::ffi::OsStrExt;
        assert_eq!(lines(b"\xff\xfe.jpg\n")[0].as_ref().unwrap().as_os_str().as_bytes(), b"\xff\xfe.jpg");
    }
}
