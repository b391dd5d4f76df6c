//! YOLO text files: one per image, with a line per detection.

use std::fmt::Write;

use super::Found;

/// A line per detection, highest score first: class index; center, width and height of the box as fractions of the
/// upright original image; score.
pub fn yolo(found: &Found) -> String {
    let (width, height) = (found.width as f32, found.height as f32);
    let mut text = String::new();
    for detection in &found.detections {
        let b = &detection.bounding_box;
        let (x, y) = (0.5 * (b.x1 + b.x2) / width, 0.5 * (b.y1 + b.y2) / height);
        let (w, h) = (b.width() / width, b.height() / height);
        writeln!(text, "{} {x:.6} {y:.6} {w:.6} {h:.6} {:.6}", detection.class_index, detection.score)
            .expect("writing to a string does not fail");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn every_detection_is_a_line_of_fractions() {
        let texts: Vec<_> = samples::reports().iter().flat_map(|report| report.outcome.as_ref().map(yolo)).collect();
        let expected =
            "1 0.244141 0.442708 0.457031 0.781250 0.875000\n0 0.031250 0.083333 0.062500 0.166667 0.500000\n";
        assert_eq!(texts, [expected, "", "0 0.125000 0.250000 0.250000 0.500000 0.500000\n"]);
    }
}
