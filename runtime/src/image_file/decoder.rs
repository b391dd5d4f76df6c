//! The decoders of the crate `image`, within limits.

use std::io::{BufRead, Cursor, Seek};
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, RgbImage};

use super::error::DecodeError;
use super::limits::Limits;
use super::{jpeg, unsupported, webp};
use crate::pixel_budget::{PixelBudget, Reservation};

/// Decodes an image of any format but TIFF.
pub(super) fn decode(
    bytes: &[u8],
    limits: &Limits,
    budget: &PixelBudget,
) -> Result<(RgbImage, Reservation), DecodeError> {
    let reader = detect_format(Cursor::new(bytes), limits)?;
    match reader.format() {
        Some(ImageFormat::Jpeg) if !jpeg::has_end_marker(bytes) => return Err(DecodeError::Truncated),
        Some(ImageFormat::WebP) => webp::check(bytes, limits)?,
        _ => {}
    }
    catch_panic(|| decode_with(reader.into_decoder()?, limits, budget))
}

/// Decodes the image of a decoder.
pub(super) fn decode_with(
    mut decoder: impl ImageDecoder,
    limits: &Limits,
    budget: &PixelBudget,
) -> Result<(RgbImage, Reservation), DecodeError> {
    let orientation = check(&mut decoder, limits)?;
    let (width, height) = decoder.dimensions();
    let reserved = budget.reserve(u64::from(width) * u64::from(height));
    let mut image = DynamicImage::from_decoder(decoder)?;
    image.apply_orientation(orientation);
    Ok((image.into_rgb8(), reserved))
}

/// Checks the size of an image. Returns the orientation to apply to the decoded image.
pub(super) fn check(decoder: &mut impl ImageDecoder, limits: &Limits) -> Result<Orientation, DecodeError> {
    let (width, height) = decoder.dimensions();
    limits.check((width, height))?;
    if decoder.total_bytes() > limits.memory() {
        return Err(DecodeError::Large { width, height, limit: limits.pixels });
    }
    // Damaged metadata in a valid image do not rotate it.
    Ok(decoder.orientation().unwrap_or(Orientation::NoTransforms))
}

/// Detects the format from the content.
pub(super) fn detect_format<R: BufRead + Seek>(content: R, limits: &Limits) -> Result<ImageReader<R>, DecodeError> {
    use ImageFormat::{Bmp, Gif, Jpeg, Png, WebP};
    let mut reader = ImageReader::new(content).with_guessed_format()?;
    reader.limits(limits.for_image());
    if matches!(reader.format(), Some(Jpeg | Png | WebP | Bmp | Gif)) {
        return Ok(reader);
    }
    let mut content = reader.into_inner();
    Err(unsupported::recognize(content.fill_buf()?).map_or(DecodeError::Unknown, DecodeError::Unsupported))
}

/// Turns a decoder's panic into an error: decoders are large dependencies, and images are untrusted input.
pub(super) fn catch_panic<T>(decode: impl FnOnce() -> Result<T, DecodeError>) -> Result<T, DecodeError> {
    // Everything that a panic leaves inconsistent is dropped with it.
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or(Err(DecodeError::Panicked))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_a_decoder_is_an_error() {
        assert!(matches!(catch_panic::<()>(|| panic!("of a test")), Err(DecodeError::Panicked)));
        assert!(matches!(catch_panic(|| Ok(1)), Ok(1)));
    }
}
