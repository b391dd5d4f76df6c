//! Images of a report: small JPEG files, with their boxes as data.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::codecs::jpeg::JpegEncoder;
use image::imageops::thumbnail;
use models::dataset::{Dataset, Rectangle};
use models::evaluation::ScoredBox;
use rayon::prelude::*;
use serde::Serialize;

use super::number::short;

/// Maximum side of a shown image, in pixels.
const MAX_SIDE: u32 = 512;

/// JPEG quality, from 1 to 100. Files have half the size of those with visually lossless quality.
const JPEG_QUALITY: u8 = 80;

/// Maximum number of detections of an image below the score of the confusion matrix: the highest-scoring ones. Of those from it
/// on none is left out, because the image is to show the same errors as the matrix.
const MAX_LOW_DETECTIONS: usize = 100;

/// An image with its boxes, in pixels of the upright original: left, top, right, bottom.
#[derive(Debug, Serialize)]
pub(super) struct ReportImage {
    pub(super) name: String,
    width: u32,
    height: u32,
    /// A JPEG file in base64.
    pub(super) jpeg: Option<String>,
    /// Why the image cannot be shown.
    pub(super) problem: Option<String>,
    pub(super) objects: Vec<TrueBox>,
    /// Highest score first.
    pub(super) detections: Vec<FoundBox>,
}

#[derive(Debug, Serialize)]
pub(super) struct TrueBox {
    class: usize,
    #[serde(rename = "box")]
    corners: [f64; 4],
    crowd: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct FoundBox {
    class: usize,
    pub(super) score: f64,
    #[serde(rename = "box")]
    corners: [f64; 4],
}

/// The images at these indices of the data set. `detections` has a list per image of the data set, `score` is the one from
/// which on the confusion matrix counts them.
pub(super) fn read(truth: &Dataset, chosen: &[usize], detections: &[Vec<ScoredBox>], score: f64) -> Vec<ReportImage> {
    let read = |&index: &usize| {
        let image = &truth.images()[index];
        let objects = truth.annotations_of(index).iter();
        let mut found = detections[index].clone();
        found.sort_by(|a, b| b.score.total_cmp(&a.score));
        let counted = found.partition_point(|detection| detection.score >= score);
        found.truncate(counted.max(MAX_LOW_DETECTIONS));
        let ([width, height], jpeg, problem) = match jpeg(truth, index) {
            Ok((size, jpeg)) => (size, Some(STANDARD.encode(jpeg)), None),
            Err(error) => ([image.width, image.height], None, Some(format!("{error:#}"))),
        };
        ReportImage {
            name: image.file_name.clone(),
            width,
            height,
            jpeg,
            problem,
            objects: objects
                .map(|object| TrueBox {
                    class: object.class_index,
                    corners: corners(&object.rectangle),
                    crowd: object.crowd,
                })
                .collect(),
            detections: found
                .iter()
                .map(|found| FoundBox {
                    class: found.class_index,
                    score: short(found.score),
                    corners: corners(&found.rectangle),
                })
                .collect(),
        }
    };
    chosen.par_iter().map(read).collect()
}

/// The size of an image, and a JPEG file of it.
fn jpeg(truth: &Dataset, index: usize) -> anyhow::Result<([u32; 2], Vec<u8>)> {
    let mut image = runtime::image_file::read(truth.path_of(index))?;
    let size = image.dimensions().into();
    let factor = f64::from(MAX_SIDE) / f64::from(image.width().max(image.height()).max(1));
    if factor < 1.0 {
        let side = |side: u32| (f64::from(side) * factor).round().max(1.0) as u32;
        image = thumbnail(&image, side(image.width()), side(image.height()));
    }
    let mut jpeg = Vec::new();
    image.write_with_encoder(JpegEncoder::new_with_quality(&mut jpeg, JPEG_QUALITY))?;
    Ok((size, jpeg))
}

fn corners(rectangle: &Rectangle) -> [f64; 4] {
    let Rectangle { x, y, width, height } = *rectangle;
    [x, y, x + width, y + height].map(short)
}
