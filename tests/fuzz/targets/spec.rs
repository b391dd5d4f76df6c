//! A spec of any text, which is what an ONNX file carries, is refused, or describes a network and can be used.

#![no_main]

use libfuzzer_sys::fuzz_target;
use models::{Anchors, ModelSpec, RgbView, preprocess};

/// Larger inputs are sound, but take more time and memory than fuzzing has.
const MOST_PIXELS: u64 = 1 << 16;

fuzz_target!(|text: &str| {
    let Ok(spec) = ModelSpec::from_yaml(text) else { return };
    let again = ModelSpec::from_yaml(&spec.to_yaml()).expect("what a spec writes is a spec");
    assert_eq!(spec, again);
    let _ = models::parameters(&spec);
    let image = RgbView::new(8, 6, &[9; 8 * 6 * 3]).expect("an image of 8 by 6 pixels has these bytes");
    let placement = spec.preprocessing.place(8, 6);
    if u64::from(placement.padded_width) * u64::from(placement.padded_height) > MOST_PIXELS {
        return;
    }
    let input = preprocess(image, &spec.preprocessing);
    let (_, height, width) = input.pixels.dim();
    let anchors = Anchors::new(&spec.anchors, height, width);
    assert!(anchors.boxes().iter().all(|anchor| anchor.x1 <= anchor.x2 && anchor.y1 <= anchor.y2));
});
