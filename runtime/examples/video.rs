//! Copies a video with every detected object made unrecognizable; needs ffmpeg:
//! `cargo run -p runtime --example video -- retinanet.onnx clip.mp4 anonymous.mp4`

use std::error::Error;
use std::path::Path;

use image::RgbImage;
use image::imageops::{FilterType, crop_imm, replace, resize};
use models::BoundingBox;
use runtime::image_file::Limits;
use runtime::video::{Encoder, Frames};
use runtime::{Detector, DetectorOptions, map_ordered};

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [model, video, out] = &arguments[..] else { return Err("expected a model and two videos".into()) };
    anonymize(model.as_ref(), video.as_ref(), out.as_ref())
}

pub(crate) fn anonymize(model: &Path, video: &Path, out: &Path) -> Result<(), Failure> {
    let detector = Detector::open(model, DetectorOptions::default())?;
    let frames = Frames::open(video, None, Limits::DEFAULT.pixels)?;
    let mut encoder = Encoder::create(out, frames.rate())?;
    let draw = |frame| {
        let (_, mut image) = frame?;
        for detection in detector.detect(&image)? {
            cover(&mut image, detection.bounding_box);
        }
        Ok::<_, Failure>(image)
    };
    // Several frames at a time, which arrive in order.
    map_ordered(frames, detector.suggested_threads(), draw, |mut images| {
        images.try_for_each(|image| Ok::<_, Failure>(encoder.write(&image?)?))
    })?;
    Ok(encoder.finish()?)
}

/// Leaves four by four colors of what is in the box.
fn cover(image: &mut RgbImage, BoundingBox { x1, y1, x2, y2 }: BoundingBox) {
    let (x, y) = (x1 as u32, y1 as u32);
    let (width, height) = (x2.ceil() as u32 - x, y2.ceil() as u32 - y);
    let colors = resize(&crop_imm(image, x, y, width, height).to_image(), 4, 4, FilterType::Triangle);
    replace(image, &resize(&colors, width, height, FilterType::Nearest), x.into(), y.into());
}
