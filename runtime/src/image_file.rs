//! Images: from a file in any usual format to upright red, green and blue, and back to a file.

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

pub use models::dataset::IMAGE_EXTENSIONS as EXTENSIONS;
pub use size::size;

/// What is refused before memory is taken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Images with more pixels.
    pub pixels: u64,
    /// Files with more bytes.
    pub bytes: u64,
}

impl Limits {
    /// 16384 by 16384 pixels, and 1 GiB.
    pub const DEFAULT: Self = Self { pixels: 1 << 28, bytes: 1 << 30 };

    /// Memory that one decoder may take: the largest image with four channels of 16 bits, and what it needs besides.
    fn memory(&self) -> u64 {
        const BESIDES: u64 = 1 << 24;
        self.pixels.saturating_mul(8).saturating_add(BESIDES)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Quality of written JPEG files, of 100: no visible loss on lines and letters.
const JPEG_QUALITY: u8 = 90;

/// A file that is no image, or cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read image `{}`: {reason}", .path.display())]
pub struct ImageFileError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub reason: DecodeError,
}

/// Why bytes do not become an image.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// There are no bytes.
    #[error("the file is empty")]
    Empty,
    /// There are too many bytes.
    #[error("the file is longer than {limit} bytes")]
    Long {
        /// Bytes.
        limit: u64,
    },
    /// The bytes begin as no known format does.
    #[error("its content is none of JPEG, PNG, WebP, BMP, GIF and TIFF")]
    Unknown,
    /// The image is too large.
    #[error("{width} x {height} pixels are more than the limit of {limit}")]
    Large {
        /// Pixels that there may be.
        limit: u64,
        /// Pixels.
        width: u32,
        /// Pixels.
        height: u32,
    },
    /// The file ends before the image does.
    #[error("the file is truncated")]
    Truncated,
    /// The decoder's words.
    #[error("{0}")]
    Decoder(ImageError),
    /// The decoder has a fault.
    #[error("its decoder stopped at a fault of its own; please report it, with the image")]
    Panicked,
}

/// Reads an image. The format is told from the content, whatever the file is called. The image is turned upright as
/// its EXIF orientation says; of an animation it is the first frame; transparency is dropped, not blended; 16 bits are
/// scaled to 8, and gray, palettes and CMYK become red, green and blue.
///
/// # Errors
/// When the file cannot be read, is no image in a known format, is truncated, or exceeds [`Limits::DEFAULT`].
pub fn read(path: impl AsRef<Path>) -> Result<RgbImage, ImageFileError> {
    read_within(path, &Limits::DEFAULT)
}

/// As [`read`], with other limits.
///
/// # Errors
/// As [`read`].
pub fn read_within(path: impl AsRef<Path>, limits: &Limits) -> Result<RgbImage, ImageFileError> {
    let _span = tracing::debug_span!("read").entered();
    let path = path.as_ref();
    let image = read_bytes(path, limits).and_then(|bytes| decode_within(&bytes, limits));
    image.map_err(|reason| ImageFileError { path: path.to_owned(), reason })
}

fn read_bytes(path: &Path, limits: &Limits) -> Result<Vec<u8>, DecodeError> {
    if waits_for_a_writer(path) {
        return Err(io::Error::other("it is a pipe, which may never have an end; give a file").into());
    }
    let file = File::open(path)?;
    let expected = file.metadata().map_or(0, |metadata| metadata.len());
    if expected > limits.bytes {
        return Err(DecodeError::Long { limit: limits.bytes });
    }
    let mut bytes = Vec::with_capacity(expected as usize + 1);
    // It may grow meanwhile, and a device does not say how long it is.
    file.take(limits.bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limits.bytes { Err(DecodeError::Long { limit: limits.bytes }) } else { Ok(bytes) }
}

/// Whether opening would wait for someone who writes. Those in /dev are open already, as stdin is.
#[cfg(unix)]
fn waits_for_a_writer(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    !path.starts_with("/dev") && std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo())
}

#[cfg(not(unix))]
fn waits_for_a_writer(_path: &Path) -> bool {
    false
}

/// As [`read`], from the bytes of a file.
///
/// # Errors
/// As [`read`].
pub fn decode(bytes: &[u8]) -> Result<RgbImage, DecodeError> {
    decode_within(bytes, &Limits::DEFAULT)
}

/// As [`decode`], with other limits.
///
/// # Errors
/// As [`read`].
pub fn decode_within(bytes: &[u8], limits: &Limits) -> Result<RgbImage, DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    let reader = recognize(Cursor::new(bytes), limits)?;
    match reader.format() {
        Some(ImageFormat::Jpeg) if !ends_properly(bytes) => return Err(DecodeError::Truncated),
        Some(ImageFormat::Tiff) => tiff::check(bytes)?,
        Some(ImageFormat::WebP) => webp::check(bytes, limits)?,
        _ => {}
    }
    sheltered(|| {
        let (decoder, orientation) = open(reader, limits)?;
        let mut image = DynamicImage::from_decoder(decoder)?;
        image.apply_orientation(orientation);
        Ok(image.into_rgb8())
    })
}

/// Makes a decoder's panic an error of its image: decoders are many lines of others, and images come from anyone.
fn sheltered<T>(decode: impl FnOnce() -> Result<T, DecodeError>) -> Result<T, DecodeError> {
    // What a panic leaves half done goes away with it.
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or(Err(DecodeError::Panicked))
}

/// Tells the format from the content.
fn recognize<R: BufRead + Seek>(content: R, limits: &Limits) -> Result<ImageReader<R>, DecodeError> {
    let memory = limits.memory();
    let mut limits = image::Limits::no_limits();
    limits.max_alloc = Some(memory);
    let mut reader = ImageReader::new(content).with_guessed_format()?;
    reader.limits(limits);
    if reader.format().is_some() { Ok(reader) } else { Err(DecodeError::Unknown) }
}

/// Reads the header of an image that is not too large. Gives its decoder, and how to turn what that gives.
fn open<'a, R: BufRead + Seek + 'a>(
    reader: ImageReader<R>,
    limits: &Limits,
) -> Result<(impl ImageDecoder + 'a, Orientation), DecodeError> {
    let mut decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > limits.pixels || decoder.total_bytes() > limits.memory() {
        return Err(DecodeError::Large { width, height, limit: limits.pixels });
    }
    // Broken metadata around a sound image turn nothing.
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

/// Whether a JPEG stream has its end marker. The decoder paints what is missing gray, which would be detected on as if it
/// were an image.
fn ends_properly(bytes: &[u8]) -> bool {
    const START: u8 = 0xD8;
    const END: u8 = 0xD9;
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| *byte == 0xFF) {
        let Some(&marker) = rest.get(at + 1) else { return false };
        let skipped = match marker {
            END => return true,
            // Filling before a marker.
            0xFF => 1,
            // A byte FF of compressed data, restarts among such data, and markers without a segment.
            0x00 | 0x01 | 0xD0..=START => 2,
            // A segment that tells its length; compressed data may follow, in which the search goes on.
            _ => match rest.get(at + 2..at + 4) {
                Some(&[high, low]) => 2 + usize::from(u16::from_be_bytes([high, low])),
                _ => return false,
            },
        };
        rest = rest.get(at + skipped..).unwrap_or_default();
    }
    false
}

/// Writes an image as JPEG where the extension says so, otherwise as PNG; whole or not at all.
///
/// # Errors
/// Those of the file system.
pub fn write(path: &Path, image: &RgbImage) -> io::Result<()> {
    let written = models::write_atomically(path, |file| {
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

/// An image as the bytes of a JPEG file.
///
/// # Errors
/// When a side is longer than JPEG allows, 65,535 pixels.
pub fn to_jpeg(image: &RgbImage) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    image.write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY))?;
    Ok(bytes)
}

/// Whether [`write`] makes a JPEG file of this name.
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

    /// An image of smooth areas in which every corner has a color of its own, so that turning shows and JPEG keeps it.
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

    /// Largest difference of a channel.
    fn difference(a: &RgbImage, b: &RgbImage) -> u8 {
        assert_eq!(a.dimensions(), b.dimensions());
        a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0)
    }

    /// What JPEG loses on flat areas whose edges lie on its blocks.
    const JPEG_LOSS: u8 = 6;

    #[test]
    fn every_format_is_read_whatever_the_file_is_called() {
        let folder = tempfile::tempdir().unwrap();
        for format in FORMATS {
            let path = folder.path().join("image.txt");
            fs::write(&path, encode(&sample(), format)).unwrap();
            let loss = if format == ImageFormat::Jpeg { JPEG_LOSS } else { 0 };
            assert!(difference(&read(&path).unwrap(), &sample()) <= loss, "{format:?}");
        }
    }

    #[test]
    fn an_image_cut_short_anywhere_is_an_error() {
        for format in FORMATS {
            let bytes = encode(&sample(), format);
            // The last bytes of a PNG, GIF and TIFF file say nothing about its pixels.
            for length in (0..bytes.len() * 9 / 10).step_by(1 + bytes.len() / 200) {
                assert!(decode(&bytes[..length]).is_err(), "{format:?} cut at {length} of {}", bytes.len());
            }
        }
    }

    #[test]
    fn a_fault_of_a_decoder_is_an_error_of_the_image() {
        assert!(matches!(sheltered::<()>(|| panic!("of a test")), Err(DecodeError::Panicked)));
        assert!(matches!(sheltered(|| Ok(1)), Ok(1)));
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_that_nobody_writes_to_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe.jpg");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        assert!(read(&path).unwrap_err().to_string().contains("it is a pipe"));
    }

    #[test]
    fn a_jpeg_without_its_end_is_truncated() {
        let bytes = encode(&sample(), ImageFormat::Jpeg);
        assert!(decode(&bytes).is_ok());
        assert!(matches!(decode(&bytes[..bytes.len() - 1]), Err(DecodeError::Truncated)));
        let padded = [&bytes[..bytes.len() / 2], &vec![0; bytes.len()]].concat();
        assert!(matches!(decode(&padded), Err(DecodeError::Truncated)));
        let followed = [&bytes[..], b"what cameras append"].concat();
        assert!(decode(&followed).is_ok());
    }

    /// EXIF metadata that tell this orientation: a TIFF header, and one entry, tag 0x112, one 16-bit number.
    pub(super) fn exif(orientation: u8) -> Vec<u8> {
        [b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0", &[orientation, 0, 0, 0][..], &[0; 4]].concat()
    }

    #[test]
    fn images_are_turned_upright() {
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
    fn sixteen_bits_are_scaled_and_gray_is_repeated() {
        let gray: ImageBuffer<Luma<u16>, Vec<u16>> =
            ImageBuffer::from_fn(4, 1, |x, _| Luma([[0, 257 * 100, 257 * 200, 65535][x as usize]]));
        let mut bytes = Cursor::new(Vec::new());
        gray.write_to(&mut bytes, ImageFormat::Png).unwrap();
        assert_eq!(decode(bytes.get_ref()).unwrap().into_raw(), [0, 0, 0, 100, 100, 100, 200, 200, 200, 255, 255, 255]);
    }

    #[test]
    fn transparency_is_dropped() {
        let bytes = {
            let mut bytes = Vec::new();
            let pixels = [10, 20, 30, 0, 40, 50, 60, 128];
            PngEncoder::new(&mut bytes).write_image(&pixels, 2, 1, image::ExtendedColorType::Rgba8).unwrap();
            bytes
        };
        assert_eq!(decode(&bytes).unwrap().into_raw(), [10, 20, 30, 40, 50, 60]);
    }

    #[test]
    fn of_an_animation_the_first_frame_counts() {
        let mut bytes = Vec::new();
        let mut encoder = GifEncoder::new(&mut bytes);
        for shade in [10, 200] {
            encoder.encode(&[shade; 3 * 64], 8, 8, image::ExtendedColorType::Rgb8).unwrap();
        }
        drop(encoder);
        assert_eq!(decode(&bytes).unwrap(), RgbImage::from_pixel(8, 8, Rgb([10; 3])));
    }

    #[test]
    fn a_bomb_is_refused_by_its_header() {
        // A PNG of 60000 x 60000 pixels that has a header and nothing else.
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
        for (content, reason) in [(&b""[..], "the file is empty"), (b"GIMP", "its content is none of JPEG")] {
            let path = folder.path().join("odd.jpg");
            fs::write(&path, content).unwrap();
            let text = read(&path).unwrap_err().to_string();
            assert!(text.contains("odd.jpg") && text.contains(reason), "{text}");
        }
        assert!(read(folder.path().join("missing.jpg")).unwrap_err().to_string().contains("missing.jpg"));
    }

    #[test]
    fn what_is_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        for (name, loss) in [("a.png", 0), ("a.jpg", JPEG_LOSS)] {
            let path = folder.path().join(name);
            write(&path, &sample()).unwrap();
            assert!(difference(&read(&path).unwrap(), &sample()) <= loss);
        }
    }

    #[test]
    fn real_images_are_what_pillow_makes_of_them() {
        /// Decoders of JPEG differ in the rounding of colors: by less than a third of a level in the mean.
        const MEAN_TOLERANCE: f64 = 0.35;
        let Some(data) = std::env::var_os("RETINANET_DATA") else {
            eprintln!("skipped: RETINANET_DATA is not set");
            return;
        };
        // Pillow keeps colors where the animation is fully transparent; here they are black.
        let unlike_pillow = HashMap::from([("imagers__anim.webp", 2.6)]);

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
            let tolerance = unlike_pillow.get(name).copied().unwrap_or(MEAN_TOLERANCE);
            // Pillow has none for 16 bits of gray, which it clips.
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
