//! Writing images.

use std::io;
use std::path::Path;

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::{ImageError, RgbImage};

/// Quality of written JPEG files, from 1 to 100: no visible loss on lines and letters.
const JPEG_QUALITY: u8 = 90;

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
    use super::super::read;
    use super::super::tests::{JPEG_LOSS, difference, sample};
    use super::*;

    #[test]
    fn written_images_are_read_back() {
        let folder = tempfile::tempdir().unwrap();
        for (name, loss) in [("a.png", 0), ("a.jpg", JPEG_LOSS)] {
            let path = folder.path().join(name);
            write(&path, &sample()).unwrap();
            assert!(difference(&read(&path).unwrap(), &sample()) <= loss);
        }
    }
}
