//! What an earlier run has left: images whose outputs are there already.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::image_outputs::Targets;
use crate::paths::cannot_write;

/// The beginning of every line of NDJSON.
const START: &[u8] = b"{\"file\":\"";

/// The images that are to be skipped.
pub(super) enum Existing {
    /// By name, with the number of their lines in the NDJSON file.
    Lines(HashMap<String, usize>),
    /// Those whose output files exist.
    Files,
}

impl Existing {
    /// The images in an NDJSON file. A line that an interrupted run left unfinished is removed.
    pub(super) fn in_lines(path: &Path) -> Result<Self> {
        let file = match File::options().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::Lines(HashMap::new())),
            file => file.with_context(|| cannot_write(path))?,
        };
        let (lines, end) = read(BufReader::new(&file)).with_context(|| {
            format!(
                "cannot add to `{}`, which is not NDJSON of images; choose another file for --ndjson",
                path.display()
            )
        })?;
        file.set_len(end).with_context(|| cannot_write(path))?;
        Ok(Self::Lines(lines))
    }

    /// Whether the outputs of an image are there. Call once per image: a second one of the same name needs a second line.
    pub(super) fn contains(&mut self, file: &Path, targets: &Targets) -> bool {
        match self {
            Self::Files => targets.exist(),
            Self::Lines(lines) => match lines.get_mut(&*file.to_string_lossy()) {
                Some(count) if *count > 0 => {
                    *count -= 1;
                    true
                }
                _ => false,
            },
        }
    }
}

/// The names in the lines, and the position after the last complete line.
fn read(mut reader: impl BufRead) -> Result<(HashMap<String, usize>, u64)> {
    #[derive(Deserialize)]
    struct Image {
        file: String,
        frame: Option<u64>,
    }
    let (mut lines, mut end, mut line) = (HashMap::new(), 0, Vec::new());
    for number in 1.. {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let is_last = reader.fill_buf()?.is_empty();
        match serde_json::from_slice(&line) {
            Ok(Image { frame: Some(_), .. }) => bail!("line {number} is a frame of a video, which cannot be skipped"),
            Ok(Image { file, .. }) if line.ends_with(b"\n") => *lines.entry(file).or_insert(0) += 1,
            // Only what is certainly unfinished is removed.
            _ if is_last && line.iter().zip(START).all(|(found, expected)| found == expected) => break,
            Ok(_) => bail!("line {number} has no end"),
            Err(reason) => bail!("line {number}: {reason}"),
        }
        end += line.len() as u64;
    }
    Ok((lines, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unfinished_line_is_removed_and_anything_else_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.ndjson");
        let whole = "{\"file\":\"a.png\",\"detections\":[]}\n{\"file\":\"b.png\",\"error\":\"it is broken\"}\n";
        for rest in ["", "{", "{\"file\":\"c", "{\"file\":\"c.png\",\"detections\":[]}", "{\"file\":\"c\0\0\n"] {
            std::fs::write(&path, format!("{whole}{rest}")).unwrap();
            let mut existing = Existing::in_lines(&path).unwrap();
            let mut contains = |name: &str| existing.contains(Path::new(name), &Targets::default());
            assert_eq!(["a.png", "b.png", "b.png", "c.png"].map(&mut contains), [true, true, false, false], "{rest}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), whole);
        }
        for other in [
            "[1, 2]",
            "{\"images\": []}",
            "\n",
            "{\"file\":\"a\"x\n{\"file\":\"b\"}\n",
            "{\"file\":\"a\",\"frame\":1}\n",
        ] {
            std::fs::write(&path, other).unwrap();
            let error = format!("{:#}", Existing::in_lines(&path).err().unwrap());
            assert!(error.contains("a.ndjson") && error.contains("line 1"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), other);
        }
        std::fs::remove_file(&path).unwrap();
        assert!(!Existing::in_lines(&path).unwrap().contains(Path::new("a.png"), &Targets::default()));
    }
}
