//! Why an image cannot be read.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use image::ImageError;
use image::error::ImageFormatHint;
use tiff_reader::TiffError;

use super::region::Region;
use super::unsupported::Unsupported;

/// An image file that cannot be read or decoded.
#[derive(Debug, thiserror::Error)]
#[error("cannot read image `{}`: {reason}", .path.display())]
pub struct ImageFileError {
    /// The file.
    pub path: PathBuf,
    /// What went wrong.
    pub reason: DecodeError,
}

/// Why an image cannot be decoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The file has no bytes.
    #[error("the file is empty")]
    Empty,
    /// The file has too many bytes.
    #[error("the file is larger than the limit of {limit} bytes (--max-bytes)")]
    Long {
        /// Maximum bytes.
        limit: u64,
    },
    /// The first bytes match no supported format.
    #[error("not a JPEG, PNG, WebP, BMP, GIF or TIFF image")]
    Unknown,
    /// The file has a known format that is not supported.
    #[error("{0}")]
    Unsupported(Unsupported),
    /// The image has too many pixels.
    #[error("{width}x{height} pixels exceed the limit of {limit} pixels (--max-pixels)")]
    Large {
        /// Maximum pixels.
        limit: u64,
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// The region is not inside the image.
    #[error("the region of {}x{} pixels at {},{} is not inside the image of {}x{} pixels",
        .region.width, .region.height, .region.x, .region.y, .size.0, .size.1)]
    Region {
        /// The region.
        region: Region,
        /// Width and height of the image.
        size: (u32, u32),
    },
    /// A TIFF stores its pixels in a way that is not supported.
    #[error("{0}; convert it, for example with `gdal_translate -of PNG` or ImageMagick")]
    Encoding(Box<dyn Error + Send + Sync>),
    /// The strips or tiles of a TIFF do not fit in memory.
    #[error(
        "its strips or tiles of {bytes} bytes exceed the limit of {limit} bytes; \
        rewrite it with small tiles, for example with `gdal_translate -co TILED=YES`"
    )]
    Blocks {
        /// Bytes of a decoded strip or tile.
        bytes: usize,
        /// Maximum bytes.
        limit: usize,
    },
    /// The samples of a TIFF have no fixed scale, and their values fit neither 0 to 1 nor 0 to 255.
    #[error(
        "its values from {min} to {max} are neither from 0 to 1 nor from 0 to 255; \
        scale them to bytes, for example with `gdal_translate -ot Byte -scale {min} {max} 0 255`"
    )]
    Range {
        /// Minimum value.
        min: f64,
        /// Maximum value.
        max: f64,
    },
    /// The file ends before the image does.
    #[error("the file is truncated")]
    Truncated,
    /// The decoder reports an error.
    #[error("{0}")]
    Decoder(Box<dyn Error + Send + Sync>),
    /// The decoder panicked.
    #[error("the image decoder crashed; please report this together with the image")]
    Panicked,
}

impl From<ImageError> for DecodeError {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::IoError(error) if error.kind() == io::ErrorKind::UnexpectedEof => Self::Truncated,
            ImageError::IoError(error) => Self::Io(error),
            ImageError::Unsupported(error) if matches!(error.format_hint(), ImageFormatHint::Unknown) => Self::Unknown,
            other => Self::Decoder(other.into()),
        }
    }
}

impl From<TiffError> for DecodeError {
    fn from(error: TiffError) -> Self {
        match error {
            TiffError::Truncated { .. } | TiffError::OffsetOutOfBounds { .. } => Self::Truncated,
            TiffError::Io(error, _) => Self::Io(error),
            TiffError::DecodeOutputTooLarge { requested, limit } => Self::Blocks { bytes: requested, limit },
            TiffError::UnsupportedCompression(_)
            | TiffError::UnsupportedPredictor(_)
            | TiffError::UnsupportedPlanarConfiguration(_)
            | TiffError::UnsupportedBitsPerSample(_)
            | TiffError::UnsupportedSampleFormat(_) => Self::Encoding(error.into()),
            other => Self::Decoder(other.into()),
        }
    }
}
