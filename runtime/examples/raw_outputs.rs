//! Runs the network and the stages around it one by one, for programs that run the network themselves:
//! `cargo run -p runtime --example raw_outputs -- retinanet.onnx street.jpg`

use std::error::Error;
use std::path::Path;

use models::{Anchors, RgbView, preprocess};
use ndarray::Axis;
use runtime::{Detection, Engine, EngineOptions, image_file, postprocess};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [model, image] = &arguments[..] else { return Err("expected a model and an image".into()) };
    println!("{} objects", detect(model.as_ref(), image.as_ref())?.len());
    Ok(())
}

pub(crate) fn detect(model: &Path, image: &Path) -> Result<Vec<Detection>, Box<dyn Error>> {
    let engine = Engine::open(model, &EngineOptions::default())?;
    let image = image_file::read(image)?;
    let input = preprocess(RgbView::new(image.width(), image.height(), image.as_raw())?, &engine.spec().preprocessing);
    // [1, 3, H, W], normalized; any runtime gives the same outputs for it.
    let outputs = engine.run(input.pixels.view().insert_axis(Axis(0)))?.into_dense()?;
    let (_, height, width) = input.pixels.dim();
    let anchors = Anchors::new(&engine.spec().anchors, height, width);
    // [anchors, classes] and [anchors, 4]
    let (scores, offsets) = (outputs.scores(), outputs.offsets());
    let (scores, offsets) = (scores.index_axis(Axis(0), 0), offsets.index_axis(Axis(0), 0));
    Ok(postprocess(scores, offsets, &anchors, &input.placement, engine.spec()))
}
