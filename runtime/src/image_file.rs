//! Image files: decoding them to upright RGB images, and writing images.

mod size;
mod tiff;
mod webp;

use std::fs::File;
use std::io::{self, BufRead, Cursor, Read, Seek};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, RgbImage};

use crate::pixel_budget::{PixelBudget, Reservation};
pub use models::dataset::IMAGE_EXTENSIONS as EXTENSIONS;
pub use size::size;

/// Limits that are checked before memory is allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum pixels of an image.
    pub pixels: u64,
    /// Maximum bytes of a file.
    pub bytes: u64,
}

impl Limits {
    /// 16384 x 16384 pixels, and 1 GiB.
    pub const DEFAULT: Self = Self { pixels: 1 << 28, bytes: 1 << 30 };

    /// Bytes that a decoder may allocate: the largest image with four channels of 16 bits, and 16 MiB of working
    /// memory.
    fn memory(&self) -> u64 {
        const WORKING_MEMORY: u64 = 1 << 24;
        self.pixels.saturating_mul(8).saturating_add(WORKING_MEMORY)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Quality of written JPEG files, from 1 to 100: no visible loss on lines and letters.
const JPEG_QUALITY: u8 = 90;

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
pub enum DecodeError {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The file has no bytes.
    #[error("the file is empty")]
    Empty,
    /// The file has too many bytes.
    #[error("the file is larger than the limit of {limit} bytes")]
    Long {
        /// Maximum bytes.
        limit: u64,
    },
    /// The first bytes match no supported format.
    #[error("not a JPEG, PNG, WebP, BMP, GIF or TIFF image")]
    Unknown,
    /// The image has too many pixels.
    #[error("{width}x{height} pixels exceed the limit of {limit} pixels")]
    Large {
        /// Maximum pixels.
        limit: u64,
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// The file ends before the image does.
    #[error("the file is truncated")]
    Truncated,
    /// The decoder reports an error.
    #[error("{0}")]
    Decoder(ImageError),
    /// The decoder panicked.
    #[error("the image decoder crashed; please report this together with the image")]
    Panicked,
}

/// Reads an image. The content determines the format, not the file name. The EXIF orientation is applied, so the image
/// is upright. Animations give their first frame. The alpha channel is dropped, not blended. 16-bit channels are scaled
/// to 8 bits; gray, palette and CMYK images are converted to RGB.
///
/// # Errors
/// When the file cannot be read, has an unsupported format, is damaged or truncated, or exceeds [`Limits::DEFAULT`].
pub fn read(path: impl AsRef<Path>) -> Result<RgbImage, ImageFileError> {
    read_within(path, &Limits::DEFAULT)
}

/// As [`read`], with the given limits.
///
/// # Errors
/// As [`read`].
pub fn read_within(path: impl AsRef<Path>, limits: &Limits) -> Result<RgbImage, ImageFileError> {
    read_with(path.as_ref(), limits, |_| ()).map(|(image, ())| image)
}

/// As [`read_within`]. Waits for the pixels in the budget before memory is allocated for them.
///
/// # Errors
/// As [`read`].
pub fn read_reserved(
    path: impl AsRef<Path>,
    limits: &Limits,
    budget: &PixelBudget,
) -> Result<(RgbImage, Reservation), ImageFileError> {
    read_with(path.as_ref(), limits, |pixels| budget.reserve(pixels))
}

fn read_with<T>(path: &Path, limits: &Limits, reserve: impl FnOnce(u64) -> T) -> Result<(RgbImage, T), ImageFileError> {
    let _span = tracing::debug_span!("read").entered();
    let image = read_bytes(path, limits).and_then(|bytes| decode_with(&bytes, limits, reserve));
    image.map_err(|reason| ImageFileError { path: path.to_owned(), reason })
}

fn read_bytes(path: &Path, limits: &Limits) -> Result<Vec<u8>, DecodeError> {
    if is_named_pipe(path) {
        return Err(io::Error::other("it is a named pipe; pass a regular file").into());
    }
    let file = File::open(path)?;
    let expected = file.metadata().map_or(0, |metadata| metadata.len());
    if expected > limits.bytes {
        return Err(DecodeError::Long { limit: limits.bytes });
    }
    let mut bytes = Vec::with_capacity(expected as usize + 1);
    // The file may grow meanwhile, and devices report no length.
    file.take(limits.bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limits.bytes { Err(DecodeError::Long { limit: limits.bytes }) } else { Ok(bytes) }
}

/// Whether opening the path would block until another process writes to it. Pipes in /dev, such as stdin, are already
/// open.
#[cfg(unix)]
fn is_named_pipe(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    !path.starts_with("/dev") && std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo())
}

#[cfg(not(unix))]
fn is_named_pipe(_path: &Path) -> bool {
    false
}

/// As [`read`], from the bytes of an image file.
///
/// # Errors
/// As [`read`].
pub fn decode(bytes: &[u8]) -> Result<RgbImage, DecodeError> {
    decode_within(bytes, &Limits::DEFAULT)
}

/// As [`decode`], with the given limits.
///
/// # Errors
/// As [`read`].
pub fn decode_within(bytes: &[u8], limits: &Limits) -> Result<RgbImage, DecodeError> {
    decode_with(bytes, limits, |_| ()).map(|(image, ())| image)
}

/// As [`decode_within`]. Waits for the pixels in the budget before memory is allocated for them.
///
/// # Errors
/// As [`read`].
pub fn decode_reserved(
    bytes: &[u8],
    limits: &Limits,
    budget: &PixelBudget,
) -> Result<(RgbImage, Reservation), DecodeError> {
    decode_with(bytes, limits, |pixels| budget.reserve(pixels))
}

/// Also returns what `reserve` returned for the number of pixels.
fn decode_with<T>(bytes: &[u8], limits: &Limits, reserve: impl FnOnce(u64) -> T) -> Result<(RgbImage, T), DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    let reader = detect_format(Cursor::new(bytes), limits)?;
    match reader.format() {
        Some(ImageFormat::Jpeg) if !has_end_marker(bytes) => return Err(DecodeError::Truncated),
        Some(ImageFormat::Tiff) => tiff::check(bytes)?,
        Some(ImageFormat::WebP) => webp::check(bytes, limits)?,
        _ => {}
    }
    catch_panic(|| {
        let (decoder, orientation) = open(reader, limits)?;
        let (width, height) = decoder.dimensions();
        let reserved = reserve(u64::from(width) * u64::from(height));
        let mut image = DynamicImage::from_decoder(decoder)?;
        image.apply_orientation(orientation);
        Ok((image.into_rgb8(), reserved))
    })
}

/// Turns a decoder's panic into an error: decoders are large dependencies, and images are untrusted input.
fn catch_panic<T>(decode: impl FnOnce() -> Result<T, DecodeError>) -> Result<T, DecodeError> {
    // Everything that a panic leaves inconsistent is dropped with it.
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or(Err(DecodeError::Panicked))
}

/// Detects the format from the content.
fn detect_format<R: BufRead + Seek>(content: R, limits: &Limits) -> Result<ImageReader<R>, DecodeError> {
    let memory = limits.memory();
    let mut limits = image::Limits::no_limits();
    limits.max_alloc = Some(memory);
    let mut reader = ImageReader::new(content).with_guessed_format()?;
    reader.limits(limits);
    if reader.format().is_some() { Ok(reader) } else { Err(DecodeError::Unknown) }
}

/// Reads the header of an image and checks its size. Returns the decoder, and the orientation to apply to the decoded
/// image.
fn open<'a, R: BufRead + Seek + 'a>(
    reader: ImageReader<R>,
    limits: &Limits,
) -> Result<(impl ImageDecoder + 'a, Orientation), DecodeError> {
    let mut decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > limits.pixels || decoder.total_bytes() > limits.memory() {
        return Err(DecodeError::Large { width, height, limit: limits.pixels });
    }
    // Damaged metadata in a valid image do not rotate it.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    Ok((decoder, orientation))
}

impl From<ImageError> for DecodeError {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::IoError(error) if error.kind() == io::ErrorKind::UnexpectedEof => DecodeError::Truncated,
            ImageError::IoError(error) => DecodeError::Io(error),
            ImageError::Unsupported(error) if matches!(error.format_hint(), image::error::ImageFormatHint::Unknown) => {
                DecodeError::Unknown
            }
            other => DecodeError::Decoder(other),
        }
    }
}

/// Whether a JPEG stream has its end marker. The decoder fills missing parts with gray and reports no error.
fn has_end_marker(bytes: &[u8]) -> bool {
    const START: u8 = 0xD8;
    const END: u8 = 0xD9;
    let mut rest = bytes;
    while let Some(position) = rest.iter().position(|byte| *byte == 0xFF) {
        let Some(&marker) = rest.get(position + 1) else { return false };
        let skipped = match marker {
            END => return true,
            // Padding before a marker.
            0xFF => 1,
            // An escaped FF byte of compressed data, a restart marker, or another marker without a segment.
            0x00 | 0x01 | 0xD0..=START => 2,
            // A segment with its length; the search continues in the compressed data that may follow.
            _ => match rest.get(position + 2..position + 4) {
                Some(&[high, low]) => 2 + usize::from(u16::from_be_bytes([high, low])),
                _ => return false,
            },
        };
        rest = rest.get(position + skipped..).unwrap_or_default();
    }
    false
}

/// Writes an image atomically, without waiting for the disk: as JPEG if the extension is one of JPEG's, otherwise as PNG.
///
/// # Errors
/// When the image cannot be encoded, and I/O errors.
pub fn write(path: &Path, image: &RgbImage) -> io::Result<()> {
    let written = models::write_unsynced(path, |file| {
        if is_jpeg(path) {
            image.write_with_encoder(JpegEncoder::new_with_quality(file, JPEG_QUALITY))
        } else {
            image.write_with_encoder(PngEncoder::new(file))
        }
    });
    written.map_err(|error| match error {
        ImageError::IoError(error) => error,
        other => io::Error::other(other),
    })
}

/// Encodes an image as a JPEG file.
///
/// # Errors
/// When a side is longer than JPEG allows, 65,535 pixels.
pub fn to_jpeg(image: &RgbImage) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    image.write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY))?;
    Ok(bytes)
}

/// Whether [`write`] writes a file of this name as JPEG.
pub fn is_jpeg(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    ["jpg", "jpeg", "jpe", "jfif"].iter().any(|jpeg| extension == *jpeg)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fs;

    use image::codecs::gif::GifEncoder;
    use image::{ImageBuffer, ImageEncoder, Luma, Rgb};

    use super::*;

    /// Four areas of different colors, so that rotations are visible and JPEG changes little.
    pub(super) fn sample() -> RgbImage {
        RgbImage::from_fn(48, 32, |x, y| match (x < 24, y < 16) {
            (true, true) => Rgb([220, 30, 30]),
            (false, true) => Rgb([30, 200, 40]),
            (true, false) => Rgb([40, 60, 220]),
            (false, false) => Rgb([230, 220, 60]),
        })
    }

    pub(super) fn encode(image: &RgbImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    pub(super) const FORMATS: [ImageFormat; 6] =
        [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Gif, ImageFormat::Tiff];

    /// Maximum difference of a channel.
    fn difference(a: &RgbImage, b: &RgbImage) -> u8 {
        assert_eq!(a.dimensions(), b.dimensions());
        a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0)
    }

    /// Maximum change of a channel by JPEG, for flat areas aligned to its blocks.
    const JPEG_LOSS: u8 = 6;

    #[test]
    fn every_format_is_read_regardless_of_the_file_name() {
        let folder = tempfile::tempdir().unwrap();
        for format in FORMATS {
            let path = folder.path().join("image.txt");
            fs::write(&path, encode(&sample(), format)).unwrap();
            let loss = if format == ImageFormat::Jpeg { JPEG_LOSS } else { 0 };
            assert!(difference(&read(&path).unwrap(), &sample()) <= loss, "{format:?}");
        }
    }

    #[test]
    fn truncated_images_are_errors() {
        for format in FORMATS {
            let bytes = encode(&sample(), format);
            // The last bytes of PNG, GIF and TIFF files contain no pixels.
            for length in (0..bytes.len() * 9 / 10).step_by(1 + bytes.len() / 200) {
                assert!(decode(&bytes[..length]).is_err(), "{format:?} truncated to {length} of {}", bytes.len());
            }
        }
    }

    #[test]
    fn a_panic_of_a_decoder_is_an_error() {
        assert!(matches!(catch_panic::<()>(|| panic!("of a test")), Err(DecodeError::Panicked)));
        assert!(matches!(catch_panic(|| Ok(1)), Ok(1)));
    }

    #[cfg(unix)]
    #[test]
    fn a_named_pipe_is_an_error_and_does_not_block() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe.jpg");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        assert!(read(&path).unwrap_err().to_string().contains("it is a named pipe"));
    }

    #[test]
    fn a_jpeg_without_end_marker_is_truncated() {
        let bytes = encode(&sample(), ImageFormat::Jpeg);
        assert!(decode(&bytes).is_ok());
        assert!(matches!(decode(&bytes[..bytes.len() - 1]), Err(DecodeError::Truncated)));
        let padded = [&bytes[..bytes.len() / 2], &vec![0; bytes.len()]].concat();
        assert!(matches!(decode(&padded), Err(DecodeError::Truncated)));
        let followed = [&bytes[..], b"what cameras append"].concat();
        assert!(decode(&followed).is_ok());
    }

    /// EXIF metadata with this orientation: a TIFF header and one entry, tag 0x112, with one 16-bit number.
    pub(super) fn exif(orientation: u8) -> Vec<u8> {
        [b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0", &[orientation, 0, 0, 0][..], &[0; 4]].concat()
    }

    #[test]
    fn exif_orientation_is_applied() {
        // <https://www.cipa.jp/std/documents/e/DC-008-2012_E.pdf>, section 4.6.4, Orientation
        let upright = sample();
        for value in 1..=8 {
            let mut stored = DynamicImage::from(upright.clone());
            let orientation = Orientation::from_exif(value).unwrap();
            stored.apply_orientation(match orientation {
                Orientation::Rotate90 => Orientation::Rotate270,
                Orientation::Rotate270 => Orientation::Rotate90,
                own_inverse => own_inverse,
            });
            let mut bytes = Vec::new();
            let mut encoder = JpegEncoder::new_with_quality(&mut bytes, 95);
            encoder.set_exif_metadata(exif(value)).unwrap();
            stored.to_rgb8().write_with_encoder(encoder).unwrap();
            assert!(difference(&decode(&bytes).unwrap(), &upright) <= JPEG_LOSS, "orientation {value}");
        }
    }

    #[test]
    fn sixteen_bit_gray_is_converted_to_eight_bit_rgb() {
        let gray: ImageBuffer<Luma<u16>, Vec<u16>> =
            ImageBuffer::from_fn(4, 1, |x, _| Luma([[0, 257 * 100, 257 * 200, 65535][x as usize]]));
        let mut bytes = Cursor::new(Vec::new());
        gray.write_to(&mut bytes, ImageFormat::Png).unwrap();
        assert_eq!(decode(bytes.get_ref()).unwrap().into_raw(), [0, 0, 0, 100, 100, 100, 200, 200, 200, 255, 255, 255]);
    }

    #[test]
    fn the_alpha_channel_is_dropped() {
        let bytes = {
            let mut bytes = Vec::new();
            let pixels = [10, 20, 30, 0, 40, 50, 60, 128];
            PngEncoder::new(&mut bytes).write_image(&pixels, 2, 1, image::ExtendedColorType::Rgba8).unwrap();
            bytes
        };
        assert_eq!(decode(&bytes).unwrap().into_raw(), [10, 20, 30, 40, 50, 60]);
    }

    #[test]
    fn animations_give_their_first_frame() {
        let mut bytes = Vec::new();
        let mut encoder = GifEncoder::new(&mut bytes);
        for shade in [10, 200] {
            encoder.encode(&[shade; 3 * 64], 8, 8, image::ExtendedColorType::Rgb8).unwrap();
        }
        drop(encoder);
        assert_eq!(decode(&bytes).unwrap(), RgbImage::from_pixel(8, 8, Rgb([10; 3])));
    }

    #[test]
    fn a_huge_image_is_rejected_by_its_header() {
        // A PNG whose header declares 60000 x 60000 pixels, without pixel data.
        let mut bytes = encode(&RgbImage::new(1, 1), ImageFormat::Png);
        bytes[16..24].copy_from_slice(&[0, 0, 0xEA, 0x60, 0, 0, 0xEA, 0x60]);
        let checksum = crc32(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&checksum.to_be_bytes());
        let error = decode(&bytes).unwrap_err();
        assert!(matches!(error, DecodeError::Large { width: 60000, height: 60000, .. }), "{error}");
    }

    /// The checksum of PNG chunks.
    fn crc32(bytes: &[u8]) -> u32 {
        !bytes
            .iter()
            .fold(!0, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0xEDB8_8320 * (sum & 1))))
    }

    #[test]
    fn errors_name_the_file_and_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        for (content, reason) in [(&b""[..], "the file is empty"), (b"GIMP", "not a JPEG, PNG")] {
            let path = folder.path().join("odd.jpg");
            fs::write(&path, content).unwrap();
            let text = read(&path).unwrap_err().to_string();
            assert!(text.contains("odd.jpg") && text.contains(reason), "{text}");
        }
        assert!(read(folder.path().join("missing.jpg")).unwrap_err().to_string().contains("missing.jpg"));
    }

    #[test]
    fn written_images_are_read_back() {
        let folder = tempfile::tempdir().unwrap();
        for (name, loss) in [("a.png", 0), ("a.jpg", JPEG_LOSS)] {
            let path = folder.path().join(name);
            write(&path, &sample()).unwrap();
            assert!(difference(&read(&path).unwrap(), &sample()) <= loss);
        }
    }

    #[test]
    fn real_images_decode_as_with_pillow() {
        /// JPEG decoders round colors differently; their channel means differ by less than a third.
        const MEAN_TOLERANCE: f64 = 0.35;
        let Some(data) = std::env::var_os("RETINANET_DATA") else {
            eprintln!("skipped: RETINANET_DATA is not set");
            return;
        };
        // Pillow keeps the colors of fully transparent areas; here they are black.
        let larger_tolerances = HashMap::from([("imagers__anim.webp", 2.6)]);

        let folder = Path::new(&data).join("pictures");
        let manifest = fs::read_to_string(folder.join("manifest.json")).unwrap();
        let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
        for expected in manifest["files"].as_array().unwrap() {
            let name = expected["file"].as_str().unwrap();
            let result = read(folder.join(name));
            if expected["decode"] != "ok" {
                let text = result.unwrap_err().to_string();
                assert!(text.contains(name), "{text}");
                continue;
            }
            let image = result.unwrap();
            assert_eq!(serde_json::json!([image.width(), image.height()]), expected["upright_size"], "{name}");
            let tolerance = larger_tolerances.get(name).copied().unwrap_or(MEAN_TOLERANCE);
            // 16-bit gray images have no expected means, since Pillow clips them.
            let Some(means) = expected["rgb_mean"].as_array() else { continue };
            for (channel, mean) in means.iter().enumerate() {
                let sum: u64 = image.pixels().map(|pixel| u64::from(pixel.0[channel])).sum();
                let found = sum as f64 / f64::from(image.width() * image.height());
                let mean = mean.as_f64().unwrap();
                assert!(
                    (found - mean).abs() <= tolerance,
                    "{name}: mean {found} of channel {channel}, expected {mean}"
                );
            }
        }
    }
}
