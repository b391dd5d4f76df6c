//! Preprocessing and anchors match those of other projects, which are in `tests/golden/inputs.json`.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use models::import::Kind;
use models::spec::{BoxScale, PreprocessingSpec};
use models::{Anchors, BoundingBox, ModelSpec, Preprocessed, RgbView, preprocess, preprocess_bytes};
use serde::Deserialize;

/// `tests/golden/inputs.json`.
#[derive(Deserialize)]
struct Cases {
    sizes: Vec<SizeCase>,
    pixels: Vec<PixelCase>,
    anchors: Vec<AnchorCase>,
}

/// The placement of an image, and two boxes converted in either direction. Sizes are width and height.
#[derive(Deserialize)]
struct SizeCase {
    source: String,
    image: [u32; 2],
    resized: [u32; 2],
    padded: [u32; 2],
    #[serde(rename = "box")]
    bounding_box: BoundingBox,
    box_in_input: BoundingBox,
    found: BoundingBox,
    found_in_image: BoundingBox,
}

/// The preprocessed pixels of an image with a known pattern. Sizes are width and height.
#[derive(Deserialize)]
struct PixelCase {
    source: String,
    image: [u32; 2],
    resized: [u32; 2],
    antialias: bool,
    /// The green channel, row by row, normalized.
    green: Vec<f32>,
}

/// The anchors of an input.
#[derive(Deserialize)]
struct AnchorCase {
    /// Height and width.
    input: [usize; 2],
    count: usize,
    /// Indices of some anchors ...
    rows: Vec<usize>,
    /// ... and these anchors.
    boxes: Vec<BoundingBox>,
    /// Sums of x1, y1, x2 and y2 over all anchors.
    sums: [f64; 4],
}

/// In pixels. The reference is single precision too, and coordinates up to 1334 have eleven bits before the point.
const BOX_TOLERANCE: f32 = 5e-4;

/// For normalized pixels, which are up to 2.7. Like ours, torch's interpolation weights are single precision.
const PIXEL_TOLERANCE: f32 = 1e-5;

/// torch 2.11.0, torchvision 0.26.0, scikit-image 0.26.0, by `tests/golden/inputs.py`
fn cases() -> Cases {
    serde_json::from_str(include_str!("../../tests/golden/inputs.json")).unwrap()
}

fn spec(source: &str) -> ModelSpec {
    Kind::ALL.into_iter().find(|known| known.name() == source).unwrap().spec().unwrap()
}

fn assert_near(found: BoundingBox, expected: BoundingBox, case: &str) {
    let corners = <[f32; 4]>::from(found).into_iter().zip(<[f32; 4]>::from(expected));
    let near = corners.into_iter().all(|(a, b)| (a - b).abs() < BOX_TOLERANCE);
    assert!(near, "{case}: found {found:?}, expected {expected:?}");
}

#[test]
fn placements_and_boxes_match_the_source() {
    let cases = cases().sizes;
    assert!(cases.len() > 150);
    for SizeCase { source, image, resized, padded, bounding_box, box_in_input, found, found_in_image } in cases {
        let placement = spec(&source).preprocessing.place(image[0], image[1]);
        let case = format!("{source}, {image:?}");
        assert_eq!([placement.resized_width, placement.resized_height], resized, "{case}");
        assert_eq!([placement.padded_width, placement.padded_height], padded, "{case}");
        assert_near(placement.to_input(&bounding_box), box_in_input, &case);
        assert_near(placement.to_original_image(&found), found_in_image, &case);
    }
}

/// torchvision fails for this image.
#[test]
fn side_that_would_be_rounded_to_zero_keeps_one_pixel() {
    let placement = Kind::TorchvisionV1.spec().unwrap().preprocessing.place(4000, 2);
    assert_eq!([placement.resized_width, placement.resized_height], [1333, 1]);
    assert_eq!([placement.padded_width, placement.padded_height], [1344, 32]);
}

#[test]
fn pixels_match_the_source() {
    for PixelCase { source, image: [width, height], resized, antialias, green } in cases().pixels {
        let value = |x: u32, y: u32, channel: u32| ((x * 37 + y * 61 + channel * 101) % 256) as u8;
        let pixel = |x, y| [0, 1, 2].map(|channel| value(x, y, channel));
        let bytes: Vec<_> = (0..height).flat_map(|y| (0..width).flat_map(move |x| pixel(x, y))).collect();
        // The size is given by the case, so that the aspect ratio may change.
        let spec = PreprocessingSpec {
            fixed_size: Some([resized[1], resized[0]]),
            box_scale: BoxScale::PerAxis,
            antialias,
            ..spec(&source).preprocessing
        };
        let Preprocessed { pixels, .. } = preprocess(RgbView::new(width, height, &bytes).unwrap(), &spec);
        assert_eq!(green.len() as u32, resized[0] * resized[1]);
        for (index, expected) in green.into_iter().enumerate() {
            let (x, y) = (index % resized[0] as usize, index / resized[0] as usize);
            let found = pixels[[1, y, x]];
            assert!(
                (found - expected).abs() < PIXEL_TOLERANCE,
                "{source}, {width}x{height} to {resized:?}, antialias {antialias}, at {x}, {y}: found {found}, expected \
                 {expected}"
            );
        }
    }
}

#[test]
fn anchors_match_torchvision() {
    for source in [Kind::TorchvisionV1, Kind::TorchvisionV2, Kind::Mlperf] {
        let spec = source.spec().unwrap();
        for AnchorCase { input: [height, width], count, rows, boxes, sums } in cases().anchors {
            let anchors = Anchors::new(&spec.anchors, height, width);
            assert_eq!(anchors.boxes().len(), count, "{height}x{width}");
            for (row, expected) in rows.into_iter().zip(boxes) {
                assert_eq!(anchors.boxes()[row], expected, "{height}x{width}, row {row}");
            }
            let found = anchors.boxes().iter().fold([0.0; 4], |sums: [f64; 4], anchor| {
                let corners = <[f32; 4]>::from(*anchor);
                std::array::from_fn(|i| sums[i] + f64::from(corners[i]))
            });
            assert_eq!(found, sums, "{height}x{width}");
        }
    }
}

/// An image that another library resized: `tests/golden/resize.json`. Sizes are width and height.
#[derive(Deserialize)]
struct ResizeCase {
    library: String,
    image: [u32; 2],
    resized: [u32; 2],
    /// RGB, row by row.
    bytes: Vec<u8>,
}

#[test]
fn rounded_pixels_are_those_of_pillow_and_opencv() {
    let cases: Vec<ResizeCase> = serde_json::from_str(include_str!("../../tests/golden/resize.json")).unwrap();
    assert_eq!(cases.len(), 10);
    for ResizeCase { library, image: [width, height], resized: [columns, rows], bytes } in cases {
        let noise = |x: u32, y: u32, c: u32| (x * 7919 + y * 104_729 + c * 1_299_709 + x * y * 31) % 97;
        let value = |x, y, c| ((x * 3 + y * 2 + c * 40 + noise(x, y, c)) % 256) as u8;
        let pixel = |x, y| [0, 1, 2].map(|c| value(x, y, c));
        let pixels: Vec<_> = (0..height).flat_map(|y| (0..width).flat_map(move |x| pixel(x, y))).collect();
        let spec = PreprocessingSpec {
            fixed_size: Some([rows, columns]),
            antialias: library == "pillow",
            round_pixels: true,
            ..PreprocessingSpec::default()
        };
        let Ok((found, _)) = preprocess_bytes(RgbView::new(width, height, &pixels).unwrap(), &spec);
        for (index, expected) in bytes.into_iter().enumerate() {
            let [y, x, channel] = [index / 3 / columns as usize, index / 3 % columns as usize, index % 3];
            // OpenCV adds up the first and the last rows from two rounded halves.
            let half = library == "opencv" && rows > height && [0, 1].contains(&y.min(rows as usize - 1 - y));
            let difference = found[[y, x, channel]].abs_diff(expected);
            assert!(difference <= half.into(), "{library}, {width}x{height}, row {y}: {difference}");
        }
    }
}
