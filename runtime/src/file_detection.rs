//! Detection in an image file, which may be much larger than memory if it is a TIFF.

use std::fs;
use std::ops::Range;
use std::path::Path;

use image::{RgbImage, imageops};
use models::RgbRows;

use crate::call::CallOptions;
use crate::detector::Detector;
use crate::image_file::{self, ImageFileError, Limits, Region, TiffReader};
use crate::output::{Failure, Found};
use crate::pixel_budget::PixelBudget;
use crate::views::ViewSpec;

/// Pixels that are read at a time from a TIFF that does not fit in memory.
const BAND_PIXELS: u64 = 1 << 23;

/// Reads an image file within `limits` and detects. Waits for the image's pixels in the budget before memory is allocated
/// for them.
///
/// With tiles, a TIFF that exceeds the limits is read part by part, with the same detections. It takes 106 million pixels of
/// the budget, most of them for decoded strips or tiles of the file.
///
/// # Errors
/// When the file cannot be read, and when the detector fails.
pub fn detect_file(detector: &Detector, path: &Path, limits: &Limits, budget: &PixelBudget) -> Result<Found, Failure> {
    if detector.views().tiling.is_some()
        && let Some(image) = open_beyond(path, limits)
    {
        return detect_parts(detector, &image, budget);
    }
    let (image, _reserved) = image_file::read_reserved(path, limits, budget).map_err(|error| error.reason)?;
    Ok(Found::detect(detector, &image)?)
}

/// The TIFF at `path`, if it exceeds the limits and can be read part by part.
fn open_beyond(path: &Path, limits: &Limits) -> Option<TiffReader> {
    // Anything else that is wrong with the file is found, and reported, when it is read as a whole.
    let image = TiffReader::open(path).ok()?;
    let (width, height) = image.size();
    let is_large = u64::from(width) * u64::from(height) > limits.pixels;
    (is_large || fs::metadata(path).ok()?.len() > limits.bytes).then_some(image)
}

fn detect_parts(detector: &Detector, image: &TiffReader, budget: &PixelBudget) -> Result<Found, Failure> {
    // A band is in memory twice while it is turned upright or converted.
    let _reserved = budget.reserve(TiffReader::CACHE_BYTES as u64 / 3 + 2 * BAND_PIXELS);
    let (width, height) = image.size();
    let prepare = |spec| {
        let rows = ViewRows { image, spec, first: 0, band: RgbImage::new(0, 0) };
        detector.prepare(rows).map_err(|error| Failure::from(error.reason))
    };
    let (detections, _) = detector.detect_views([width, height], &CallOptions::default(), prepare)?;
    Ok(Found { width, height, detections })
}

/// The rows of a view, read in bands.
struct ViewRows<'a> {
    image: &'a TiffReader,
    spec: ViewSpec,
    /// The first row of `band`.
    first: usize,
    /// Rows of the view that have been read.
    band: RgbImage,
}

impl RgbRows for ViewRows<'_> {
    type Error = ImageFileError;

    fn size(&self) -> (u32, u32) {
        (self.spec.region.width, self.spec.region.height)
    }

    fn rows(&mut self, rows: Range<usize>) -> Result<&[u8], ImageFileError> {
        let (width, height) = self.size();
        if rows.start < self.first || rows.end > self.first + self.band.height() as usize {
            let start = rows.start as u32;
            let count = (rows.len() as u32).max((BAND_PIXELS / u64::from(width)) as u32).min(height - start);
            let region = Region { y: self.spec.region.y + start, height: count, ..self.spec.region };
            self.band = self.image.read_region(region)?;
            if self.spec.mirrored {
                imageops::flip_horizontal_in_place(&mut self.band);
            }
            self.first = rows.start;
        }
        let row_bytes = 3 * width as usize;
        Ok(&self.band.as_raw()[(rows.start - self.first) * row_bytes..(rows.end - self.first) * row_bytes])
    }
}
