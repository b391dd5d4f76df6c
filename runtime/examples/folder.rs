//! Detects objects in all images of a folder, in parallel: `cargo run -p runtime --example folder -- retinanet.onnx photos`

use std::error::Error;
use std::path::{Path, PathBuf};

use runtime::image_file::Limits;
use runtime::{Detector, DetectorOptions, PixelBudget, detect_file, inputs, map_ordered};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [model, folder] = &arguments[..] else { return Err("expected a model and a folder".into()) };
    for line in detect(model.as_ref(), folder.as_ref())? {
        println!("{line}");
    }
    Ok(())
}

/// A line for each image, in the order of their names. One that cannot be read does not end the others.
pub(crate) fn detect(model: &Path, folder: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    let mut options = DetectorOptions::default();
    // Images of one input size share a run of the network.
    options.max_batch = 4.try_into().ok();
    let detector = Detector::open(model, options)?;
    let files = inputs::expand(&[folder], true)?;
    // However many threads read: no more pixels than these are in memory.
    let (limits, budget) = (Limits::DEFAULT, PixelBudget::new(1 << 28));
    let detect = |file: PathBuf| match detect_file(&detector, &file, &limits, &budget) {
        Ok(found) => format!("{}: {} objects", file.display(), found.detections.len()),
        Err(reason) => format!("{}: {reason}", file.display()),
    };
    Ok(map_ordered(files.into_iter(), detector.suggested_threads(), detect, |lines| lines.collect()))
}
