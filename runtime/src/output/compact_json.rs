//! Compact indented JSON: the outer levels have one entry per line; deeper objects and lists stay on one line.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::Formatter;

/// Levels with one entry per line; deeper objects and lists are on one line.
const INDENTED_LEVELS: usize = 2;

/// Writes `value` and a line feed.
pub(super) fn write(value: &impl Serialize, target: impl Write) -> io::Result<()> {
    let mut serializer = Serializer::with_formatter(target, CompactFormatter::default());
    value.serialize(&mut serializer)?;
    serializer.into_inner().write_all(b"\n")
}

#[derive(Default)]
struct CompactFormatter {
    /// Number of open objects and lists.
    depth: usize,
}

impl CompactFormatter {
    fn begin<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        writer.write_all(bracket)
    }

    fn end<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if self.depth < INDENTED_LEVELS {
            self.break_line(writer)?;
        }
        writer.write_all(bracket)
    }

    fn begin_entry<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if !first {
            writer.write_all(b",")?;
        }
        match self.depth {
            ..=INDENTED_LEVELS => self.break_line(writer),
            _ if first => Ok(()),
            _ => writer.write_all(b" "),
        }
    }

    fn break_line<W: ?Sized + Write>(&self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b"\n")?;
        writer.write_all("  ".repeat(self.depth).as_bytes())
    }
}

impl Formatter for CompactFormatter {
    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.begin(writer, b"[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.end(writer, b"]")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.begin_entry(writer, first)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.begin(writer, b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.end(writer, b"}")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.begin_entry(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn outer_entries_are_on_separate_lines_and_inner_ones_on_one() {
        let value = json!({ "AP": 0.5, "classes": [{ "id": 3, "AP": 0.25 }, { "id": 4, "AP": 0.75 }], "none": [] });
        let mut text = Vec::new();
        write(&value, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
        assert!(text.starts_with("{\n  \"AP\": 0.5,\n") && text.ends_with("\n}\n"), "{text}");
        assert!(text.contains("\n  \"classes\": [\n    {"), "{text}");
        assert!(text.contains("}\n  ],\n  \"none\": [\n  ]\n}"), "{text}");
        assert_eq!(text.lines().count(), 9, "{text}");
    }
}
