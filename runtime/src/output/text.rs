//! Human-readable text: a line per image, followed by one per detection.

use std::io::{self, Write};

use models::spec::Class;

use super::Report;

/// Failed images have no line; they are reported on stderr.
pub(super) fn write(out: &mut impl Write, report: &Report, classes: &[Class]) -> io::Result<()> {
    let Ok(found) = &report.outcome else { return Ok(()) };
    let count = match found.detections.len() {
        1 => "1 detection".to_owned(),
        count => format!("{count} detections"),
    };
    writeln!(out, "{}: {}x{}, {count}", report.name(), found.width, found.height)?;
    for detection in &found.detections {
        let b = detection.bounding_box;
        let name = &classes[detection.class_index].name;
        writeln!(out, "  {:.2} {name} [{:.1}, {:.1}, {:.1}, {:.1}]", detection.score, b.x1, b.y1, b.x2, b.y2)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn every_image_and_every_detection_is_a_line() {
        let mut out = Vec::new();
        for report in samples::reports() {
            write(&mut out, &report, &samples::classes()).unwrap();
        }
        let expected = "a.jpg: 64x48, 2 detections\n  \
            0.88 a \"b\", c [1.0, 2.5, 30.2, 40.0]\n  \
            0.50 cat [0.0, 0.0, 4.0, 8.0]\n\
            b, c.jpg: 1x2, 0 detections\n\
            e.mp4, frame 3 (0.12 s): 16x16, 1 detection\n  \
            0.50 cat [0.0, 0.0, 4.0, 8.0]\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
