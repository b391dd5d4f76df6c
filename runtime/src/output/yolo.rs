//! YOLO text files: one per image, with a line per detection.

use std::path::Path;

use models::spec::Class;

use super::Found;
use crate::Detection;

/// A line per detection, highest score first: class index; center, width and height of the box as fractions of the
/// upright original image. These are labels as Ultralytics trains on.
pub fn yolo(found: &Found) -> String {
    found.detections.iter().map(|detection| label(found, detection) + "\n").collect()
}

/// The lines of [`yolo`] with the score as a sixth column.
pub fn yolo_with_scores(found: &Found) -> String {
    found.detections.iter().map(|detection| format!("{} {:.6}\n", label(found, detection), detection.score)).collect()
}

fn label(found: &Found, detection: &Detection) -> String {
    let (width, height) = (found.width as f32, found.height as f32);
    let b = &detection.bounding_box;
    let (x, y) = (0.5 * (b.x1 + b.x2) / width, 0.5 * (b.y1 + b.y2) / height);
    let (w, h) = (b.width() / width, b.height() / height);
    format!("{} {x:.6} {y:.6} {w:.6} {h:.6}", detection.class_index)
}

/// `data.yaml` for labels in `folder`: the classes, and the images in the folder `images` beside it, where Ultralytics
/// expects them if `folder` is called `labels`.
pub fn yolo_data(classes: &[Class], folder: &Path) -> String {
    // JSON's notation of a text is YAML too.
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let path = quoted(&folder.parent().unwrap_or(folder).to_string_lossy());
    let names = classes.iter().enumerate().map(|(index, class)| format!("  {index}: {}\n", quoted(&class.name)));
    format!("path: {path}\ntrain: images\nval: images\nnames:\n{}", names.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn every_detection_is_a_line_of_fractions() {
        let texts: Vec<_> = samples::reports().iter().flat_map(|report| report.outcome.as_ref().map(yolo)).collect();
        let expected = "1 0.244141 0.442708 0.457031 0.781250\n0 0.031250 0.083333 0.062500 0.166667\n";
        assert_eq!(texts, [expected, "", "0 0.125000 0.250000 0.250000 0.500000\n"]);
        let reports = samples::reports();
        let text = yolo_with_scores(reports[0].outcome.as_ref().unwrap());
        assert!(text.starts_with("1 0.244141 0.442708 0.457031 0.781250 0.875000\n"), "{text}");
    }

    #[test]
    fn classes_are_yaml_whatever_their_names() {
        let names = ["cat", "a: \"b\" #c", "1.10"];
        let classes: Vec<_> = (7..).zip(names).map(|(id, name)| Class { id, name: name.to_owned() }).collect();
        let text = yolo_data(&classes, Path::new("/data/labels"));
        let expected = "path: \"/data\"\ntrain: images\nval: images\nnames:\n  0: \"cat\"\n  1: \"a: \\\"b\\\" #c\"\n  2: \"1.10\"\n";
        assert_eq!(text, expected);
    }
}
