//! Detects objects in one image: `cargo run -p runtime --example image -- retinanet.onnx street.jpg`

use std::error::Error;
use std::path::Path;

use runtime::{Detector, DetectorOptions, image_file};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [model, image] = &arguments[..] else { return Err("expected a model and an image".into()) };
    print!("{}", detect(model.as_ref(), image.as_ref())?);
    Ok(())
}

/// A line for each object.
pub(crate) fn detect(model: &Path, image: &Path) -> Result<String, Box<dyn Error>> {
    let mut options = DetectorOptions::default();
    options.rules.score_threshold = Some(0.5);
    let detector = Detector::open(model, options)?;
    let image = image_file::read(image)?;
    let lines = detector.detect(&image)?.into_iter().map(|detection| {
        let class = &detector.spec().classes[detection.class_index];
        format!("{} {:.2} {:?}\n", class.name, detection.score, detection.bounding_box)
    });
    Ok(lines.collect())
}
