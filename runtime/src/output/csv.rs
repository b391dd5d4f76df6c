//! CSV, <https://www.rfc-editor.org/rfc/rfc4180>: one line per detection. Images without detections have no line.

use std::io::{self, Write};

use models::spec::Class;

use super::Report;

/// `frame` is empty except for videos.
const COLUMNS: [&str; 9] = ["file", "label", "category_id", "score", "x1", "y1", "x2", "y2", "frame"];

/// `earlier` is the number of reports written before.
pub(super) fn write(out: &mut impl Write, report: &Report, classes: &[Class], earlier: usize) -> io::Result<()> {
    begin(out, earlier)?;
    let Ok(found) = &report.outcome else { return Ok(()) };
    let mut lines = csv::Writer::from_writer(out);
    let file = report.file.to_string_lossy();
    for detection in &found.detections {
        let class = &classes[detection.class_index];
        let corners: [f32; 4] = detection.bounding_box.into();
        lines.serialize((
            &file,
            &class.name,
            class.id,
            detection.score,
            corners,
            report.frame.map(|frame| frame.number),
        ))?;
    }
    lines.flush()
}

/// Writes the header if nothing has been written yet.
pub(super) fn begin(out: &mut impl Write, earlier: usize) -> io::Result<()> {
    if earlier == 0 { writeln!(out, "{}", COLUMNS.join(",")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn every_detection_is_a_line_with_commas_and_quotes_escaped() {
        let mut out = Vec::new();
        for (earlier, mut report) in samples::reports().into_iter().enumerate() {
            report.file = "a,b.jpg".into();
            write(&mut out, &report, &samples::classes(), earlier).unwrap();
        }
        let expected = "file,label,category_id,score,x1,y1,x2,y2,frame\n\
            \"a,b.jpg\",\"a \"\"b\"\", c\",90,0.875,1.0,2.5,30.25,40.0,\n\
            \"a,b.jpg\",cat,7,0.5,0.0,0.0,4.0,8.0,\n\
            \"a,b.jpg\",cat,7,0.5,0.0,0.0,4.0,8.0,3\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
