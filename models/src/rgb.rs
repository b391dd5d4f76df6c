//! RGB images, in memory or read row by row.

use std::convert::Infallible;
use std::ops::Range;

/// An RGB image in memory, 8 bits per channel, row by row, without gaps.
#[derive(Clone, Copy, Debug)]
pub struct RgbView<'a> {
    width: u32,
    height: u32,
    pixels: &'a [u8],
}

/// Why bytes are not a valid image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RgbViewError {
    /// A side is zero.
    #[error("image of {width}x{height} pixels is empty")]
    Empty {
        /// Pixels per row.
        width: u32,
        /// Rows.
        height: u32,
    },
    /// There are not three bytes per pixel.
    #[error("image of {width}x{height} pixels has {found} bytes, expected 3 per pixel")]
    Length {
        /// Pixels per row.
        width: u32,
        /// Rows.
        height: u32,
        /// Number of bytes given.
        found: usize,
    },
}

impl<'a> RgbView<'a> {
    /// An image of `width` by `height` pixels, three bytes each.
    ///
    /// # Errors
    /// When a side is zero, or when `pixels` has another length than `3 · width · height`.
    pub fn new(width: u32, height: u32, pixels: &'a [u8]) -> Result<Self, RgbViewError> {
        if width == 0 || height == 0 {
            Err(RgbViewError::Empty { width, height })
        } else if pixels.len() as u128 != 3 * u128::from(width) * u128::from(height) {
            Err(RgbViewError::Length { width, height, found: pixels.len() })
        } else {
            Ok(Self { width, height, pixels })
        }
    }

    /// Pixels per row.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> u32 {
        self.height
    }
}

/// An RGB image, 8 bits per channel, that gives its rows from top to bottom, so that it need not be in memory.
pub trait RgbRows {
    /// Why rows cannot be read.
    type Error;

    /// Pixels per row and number of rows, both at least 1.
    fn size(&self) -> (u32, u32);

    /// The bytes of these rows, without gaps. No range starts before an earlier one.
    ///
    /// # Errors
    /// When the rows cannot be read.
    fn rows(&mut self, rows: Range<usize>) -> Result<&[u8], Self::Error>;
}

impl RgbRows for RgbView<'_> {
    type Error = Infallible;

    fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    #[inline(always)]
    fn rows(&mut self, rows: Range<usize>) -> Result<&[u8], Infallible> {
        let length = 3 * self.width as usize;
        Ok(&self.pixels[rows.start * length..rows.end * length])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_images_and_wrong_lengths_are_rejected() {
        assert_eq!(RgbView::new(0, 4, &[]).unwrap_err(), RgbViewError::Empty { width: 0, height: 4 });
        let error = RgbView::new(2, 2, &[0; 11]).unwrap_err();
        assert_eq!(error.to_string(), "image of 2x2 pixels has 11 bytes, expected 3 per pixel");
        assert!(RgbView::new(u32::MAX, u32::MAX, &[0; 3]).is_err());
    }
}
