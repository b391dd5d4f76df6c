//! The report for programs: JSON whose outer levels have a line per entry, and whose curves and rows do not have a line per
//! number.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::Formatter;

use super::EvaluationReport;

/// Objects and lists nested deeper are on one line.
const LINED: usize = 2;

pub(super) fn write(report: &EvaluationReport, target: impl Write) -> io::Result<()> {
    let mut serializer = Serializer::with_formatter(target, Lines::default());
    report.serialize(&mut serializer)?;
    serializer.into_inner().write_all(b"\n")
}

/// Where in the text it is.
#[derive(Default)]
struct Lines {
    depth: usize,
}

impl Lines {
    fn begin<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        writer.write_all(bracket)
    }

    fn end<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if self.depth < LINED {
            self.break_line(writer)?;
        }
        writer.write_all(bracket)
    }

    fn begin_entry<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if !first {
            writer.write_all(b",")?;
        }
        match self.depth {
            ..=LINED => self.break_line(writer),
            _ if first => Ok(()),
            _ => writer.write_all(b" "),
        }
    }

    fn break_line<W: ?Sized + Write>(&self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b"\n")?;
        writer.write_all("  ".repeat(self.depth).as_bytes())
    }
}

impl Formatter for Lines {
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
    use serde_json::Value;

    use super::super::samples;
    use super::*;

    #[test]
    fn every_number_and_every_class_has_a_line_and_every_curve_is_on_one() {
        let report = samples::report(&["cat", "dog", "cow"], &samples::DETAILS);
        let mut text = Vec::new();
        write(&report, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let expected = serde_json::to_value(&report).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
        assert!(text.starts_with("{\n  \"AP\": ") && text.ends_with("\n  }\n}\n"), "{text}");
        assert!(text.contains("\n  \"classes\": [\n    {\"id\": 3, \"name\": \"cat\", \"objects\": 1, "), "{text}");
        assert!(text.contains("\n    \"counts\": [[1, 0, 0, 0], [0, 0, 1, 0], "), "{text}");
        // Twelve numbers, three classes, two curves, four entries of each detail, and the lines of the brackets.
        assert_eq!(text.lines().count(), 12 + 3 + 2 + 4 + 4 + 2 * 5, "{text}");
    }
}
