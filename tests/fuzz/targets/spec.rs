//! Arbitrary text as a spec, which ONNX files contain as YAML, gives a usable spec or an error.

#![no_main]

use libfuzzer_sys::fuzz_target;
use models::{Anchors, ModelSpec, RgbView, preprocess};

/// Larger inputs are valid, but exceed the time and memory limits of fuzzing.
const MAX_PIXELS: u64 = 1 << 16;

fuzz_target!(|text: &str| {
    let Ok(spec) = ModelSpec::from_yaml(text) else { return };
    let again = ModelSpec::from_yaml(&spec.to_yaml()).expect("a written spec can be read");
    assert_eq!(spec, again);
    let _ = models::parameters(&spec);
    let image = RgbView::new(8, 6, &[9; 8 * 6 * 3]).expect("an image of 8 by 6 pixels has these bytes");
    let placement = spec.preprocessing.place(8, 6);
    if u64::from(placement.padded_width) * u64::from(placement.padded_height) > MAX_PIXELS {
        return;
    }
    let input = preprocess(image, &spec.preprocessing);
    let (_, height, width) = input.pixels.dim();
    let anchors = Anchors::new(&spec.anchors, height, width);
    assert!(anchors.boxes().iter().all(|anchor| anchor.x1 <= anchor.x2 && anchor.y1 <= anchor.y2));
});
