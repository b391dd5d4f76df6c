//! The size of an image, from its header.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Cursor, Read, Seek};
use std::path::Path;

use image::{ImageDecoder, ImageFormat, ImageReader};

use super::decoder::{catch_panic, check, detect_format};
use super::error::{DecodeError, ImageFileError};
use super::limits::Limits;
use super::region::transposes;
use super::tiff;

const LIMITS: Limits = Limits::DEFAULT;

/// Bytes of a JPEG file that are read first. They nearly always contain everything before its pixels.
const JPEG_HEADER: u64 = 1 << 16;

/// Width and height, in pixels, of the upright image that [`read`](super::read) returns, without decoding its pixels.
/// Damage after the header is not detected.
///
/// # Errors
/// As [`read`](super::read), and when `path` is not a regular file.
pub fn size(path: impl AsRef<Path>) -> Result<(u32, u32), ImageFileError> {
    let path = path.as_ref();
    size_of_file(path).map_err(|reason| ImageFileError { path: path.to_owned(), reason })
}

fn size_of_file(path: &Path) -> Result<(u32, u32), DecodeError> {
    let metadata = fs::metadata(path)?;
    match metadata.len() {
        _ if !metadata.is_file() => return Err(io::Error::other("it is not a regular file").into()),
        0 => return Err(DecodeError::Empty),
        length if length > LIMITS.bytes => return Err(DecodeError::Long { limit: LIMITS.bytes }),
        _ => {}
    }
    let mut content = BufReader::new(File::open(path)?);
    if tiff::is_tiff(content.fill_buf()?) {
        return catch_panic(|| tiff::size(path, &LIMITS));
    }
    let reader = detect_format(content, &LIMITS)?;
    catch_panic(|| match reader.format() {
        Some(ImageFormat::Jpeg) => size_of_jpeg(reader.into_inner()),
        _ => size_in_header(reader),
    })
}

/// The JPEG decoder reads its input to the end, so it gets only the first bytes, and more of them while they do not
/// suffice.
fn size_of_jpeg(mut content: impl Read) -> Result<(u32, u32), DecodeError> {
    let mut bytes = Vec::new();
    let mut length = JPEG_HEADER;
    loop {
        content.by_ref().take(length - bytes.len() as u64).read_to_end(&mut bytes)?;
        let complete = (bytes.len() as u64) < length || length >= LIMITS.bytes;
        match detect_format(Cursor::new(&bytes), &LIMITS).and_then(size_in_header) {
            Err(error) if !complete && !matches!(error, DecodeError::Large { .. }) => length *= 2,
            result => return result,
        }
    }
}

fn size_in_header(reader: ImageReader<impl BufRead + Seek>) -> Result<(u32, u32), DecodeError> {
    let mut decoder = reader.into_decoder()?;
    let orientation = check(&mut decoder, &LIMITS)?;
    let (width, height) = decoder.dimensions();
    Ok(if transposes(orientation) { (height, width) } else { (width, height) })
}

#[cfg(test)]
mod tests {
    use image::ImageEncoder;
    use image::codecs::jpeg::JpegEncoder;
    use image::codecs::png::PngEncoder;
    use image::codecs::webp::WebPEncoder;

    use super::super::tests::{FORMATS, encode, exif, sample};
    use super::super::{decode, read};
    use super::*;

    /// The size of a file with this content.
    fn size_of(bytes: &[u8]) -> Result<(u32, u32), DecodeError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.txt");
        fs::write(&path, bytes).unwrap();
        size(path).map_err(|error| error.reason)
    }

    /// Encodes the sample with an EXIF orientation.
    fn encode_with_orientation(mut encoder: impl ImageEncoder, orientation: u8) {
        encoder.set_exif_metadata(exif(orientation)).unwrap();
        sample().write_with_encoder(encoder).unwrap();
    }

    #[test]
    fn sizes_of_all_formats_are_read() {
        for format in FORMATS {
            assert_eq!(size_of(&encode(&sample(), format)).unwrap(), sample().dimensions(), "{format:?}");
        }
    }

    #[test]
    fn sizes_refer_to_the_upright_image() {
        for orientation in 0..=9 {
            let mut files = [Vec::new(), Vec::new(), Vec::new()];
            let [jpeg, png, webp] = &mut files;
            encode_with_orientation(JpegEncoder::new(jpeg), orientation);
            encode_with_orientation(PngEncoder::new(png), orientation);
            encode_with_orientation(WebPEncoder::new_lossless(webp), orientation);
            for bytes in files {
                assert_eq!(size_of(&bytes).unwrap(), decode(&bytes).unwrap().dimensions(), "orientation {orientation}");
            }
        }
    }

    #[test]
    fn a_jpeg_may_have_large_metadata_before_its_pixels() {
        let mut bytes = encode(&sample(), ImageFormat::Jpeg);
        // Comments of maximum length, after the two bytes that every JPEG file starts with.
        let comment = [&[0xFF, 0xFE, 0xFF, 0xFF][..], &[0; 0xFFFD]].concat();
        for _ in 0..5 {
            bytes.splice(2..2, comment.iter().copied());
        }
        assert_eq!(size_of(&bytes).unwrap(), decode(&bytes).unwrap().dimensions());
    }

    #[test]
    fn a_truncated_file_gives_its_size_or_an_error() {
        for format in FORMATS {
            let bytes = encode(&sample(), format);
            for length in (0..bytes.len()).step_by(1 + bytes.len() / 200) {
                if let Ok(size) = size_of(&bytes[..length]) {
                    assert_eq!(size, sample().dimensions(), "{format:?} truncated to {length} of {}", bytes.len());
                }
            }
        }
    }

    #[test]
    fn files_that_are_not_images_are_errors() {
        assert!(matches!(size_of(b""), Err(DecodeError::Empty)));
        assert!(matches!(size_of(b"GIMP"), Err(DecodeError::Unknown)));
        assert!(size_of(&[0xFF, 0xD8, 0xFF, 0xE0].repeat(100_000)).is_err());
        let folder = tempfile::tempdir().unwrap();
        let errors = [folder.path().to_owned(), folder.path().join("missing.jpg")].map(|path| size(path).unwrap_err());
        assert!(errors[0].to_string().contains("not a regular file"));
        assert!(errors[1].to_string().contains("missing.jpg"));
    }

    #[test]
    fn sizes_of_real_images_equal_those_of_the_decoded_images() {
        let Some(data) = std::env::var_os("RETINANET_DATA") else {
            eprintln!("skipped: RETINANET_DATA is not set");
            return;
        };
        let mut compared = 0;
        for folder in ["pictures", "bccd/JPEGImages"] {
            for entry in fs::read_dir(Path::new(&data).join(folder)).unwrap().take(40) {
                let path = entry.unwrap().path();
                let size = size(&path);
                if let Ok(image) = read(&path) {
                    assert_eq!(size.unwrap(), image.dimensions(), "{}", path.display());
                    compared += 1;
                }
            }
        }
        assert!(compared > 40, "{compared} images");
    }
}
