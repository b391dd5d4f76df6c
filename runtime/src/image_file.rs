//! Image files: decoding them to upright RGB images, and writing images.

mod decoder;
mod error;
mod jpeg;
mod limits;
mod region;
mod size;
mod tiff;
mod unsupported;
mod webp;
mod write;

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use image::RgbImage;

use crate::pixel_budget::{PixelBudget, Reservation};
pub use error::{DecodeError, ImageFileError};
pub use limits::Limits;
pub use models::dataset::IMAGE_EXTENSIONS as EXTENSIONS;
pub use region::Region;
pub use size::size;
pub use tiff::TiffReader;
pub use unsupported::Unsupported;
pub use write::{is_jpeg, to_jpeg, write};

/// Reads an image. The content determines the format, not the file name. The EXIF orientation is applied, so the image
/// is upright. Of animations and files with several pages, the first image is read. The alpha channel is dropped, not
/// blended. Gray, palette, YCbCr and CMYK images are converted to RGB, and samples of other than 8 bits to bytes as the
/// README says.
///
/// # Errors
/// When the file cannot be read, has an unsupported format, is damaged or truncated, or exceeds [`Limits::DEFAULT`].
pub fn read(path: impl AsRef<Path>) -> Result<RgbImage, ImageFileError> {
    read_reserved(path, &Limits::DEFAULT, &PixelBudget::new(u64::MAX)).map(|(image, _)| image)
}

/// As [`read`], with the given limits. Waits for the pixels in the budget before memory is allocated for them.
///
/// # Errors
/// As [`read`].
pub fn read_reserved(
    path: impl AsRef<Path>,
    limits: &Limits,
    budget: &PixelBudget,
) -> Result<(RgbImage, Reservation), ImageFileError> {
    let _span = tracing::debug_span!("decode").entered();
    let path = path.as_ref();
    let image = read_bytes(path, limits).and_then(|bytes| decode_bytes(bytes.into(), limits, budget));
    image.map_err(|reason| ImageFileError { path: path.to_owned(), reason })
}

fn read_bytes(path: &Path, limits: &Limits) -> Result<Vec<u8>, DecodeError> {
    refuse_named_pipe(path)?;
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

/// As [`read`], from the bytes of an image file.
///
/// # Errors
/// As [`read`].
pub fn decode(bytes: &[u8]) -> Result<RgbImage, DecodeError> {
    decode_reserved(bytes, &Limits::DEFAULT, &PixelBudget::new(u64::MAX)).map(|(image, _)| image)
}

/// As [`decode`], with the given limits. Waits for the pixels in the budget before memory is allocated for them.
///
/// # Errors
/// As [`read`].
pub fn decode_reserved(
    bytes: &[u8],
    limits: &Limits,
    budget: &PixelBudget,
) -> Result<(RgbImage, Reservation), DecodeError> {
    decode_bytes(bytes.into(), limits, budget)
}

fn decode_bytes(
    bytes: Cow<[u8]>,
    limits: &Limits,
    budget: &PixelBudget,
) -> Result<(RgbImage, Reservation), DecodeError> {
    match bytes.is_empty() {
        true => Err(DecodeError::Empty),
        false if tiff::is_tiff(&bytes) => tiff::decode(bytes.into_owned(), limits, budget),
        false => decoder::decode(&bytes, limits, budget),
    }
}

/// Refuses a path whose opening would block until another process writes to it. Pipes in /dev, such as stdin, are already
/// open.
fn refuse_named_pipe(path: &Path) -> io::Result<()> {
    let is_pipe = !path.starts_with("/dev") && fs::metadata(path).is_ok_and(|file| file.file_type().is_fifo());
    if is_pipe { Err(io::Error::other("it is a named pipe; pass a regular file")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::io::Cursor;

    use image::codecs::gif::GifEncoder;
    use image::codecs::jpeg::JpegEncoder;
    use image::codecs::png::PngEncoder;
    use image::metadata::Orientation;
    use image::{DynamicImage, ImageBuffer, ImageEncoder, ImageFormat, Luma, Rgb};

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
    pub(super) fn difference(a: &RgbImage, b: &RgbImage) -> u8 {
        assert_eq!(a.dimensions(), b.dimensions());
        a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0)
    }

    /// Maximum change of a channel by JPEG, for flat areas aligned to its blocks.
    pub(super) const JPEG_LOSS: u8 = 6;

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
        let heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic";
        let cases = [
            (&b""[..], "the file is empty"),
            (b"GIMP", "not a JPEG, PNG"),
            (heic, "it is a HEIC image; convert it to JPEG"),
            (b"II*\0", "the file is truncated"),
        ];
        for (content, reason) in cases {
            let path = folder.path().join("odd.jpg");
            fs::write(&path, content).unwrap();
            let text = read(&path).unwrap_err().to_string();
            assert!(text.contains("odd.jpg") && text.contains(reason), "{text}");
        }
        assert!(read(folder.path().join("missing.jpg")).unwrap_err().to_string().contains("missing.jpg"));
    }

    #[test]
    fn a_named_pipe_is_an_error_and_does_not_block() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe.jpg");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        assert!(read(&path).unwrap_err().to_string().contains("it is a named pipe"));
        let error = TiffReader::open(&path).err().unwrap();
        assert!(error.to_string().contains("it is a named pipe"));
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
