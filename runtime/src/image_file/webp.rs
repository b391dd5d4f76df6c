//! Checks that the WebP decoder omits before it allocates memory: it has no limits.
//! <https://github.com/image-rs/image/issues/3077>, <https://github.com/image-rs/image-webp/issues/21>

use memchr::memmem::find_iter;

use super::error::DecodeError;
use super::limits::Limits;

/// Rejects chunks longer than the file, and lossy frames larger than the limit.
pub(super) fn check(bytes: &[u8], limits: &Limits) -> Result<(), DecodeError> {
    check_chunks(bytes)?;
    check_frames(bytes, limits)
}

/// The decoder allocates memory for metadata chunks before it reads them.
/// <https://developers.google.com/speed/webp/docs/riff_container>
fn check_chunks(bytes: &[u8]) -> Result<(), DecodeError> {
    const HEADER: usize = 8;
    const FIRST: usize = 12;
    let length_at = |at: usize| Some(u32::from_le_bytes(bytes.get(at + 4..at + HEADER)?.try_into().ok()?) as usize);
    let end = length_at(0).map_or(0, |length| bytes.len().min(HEADER + length));
    let mut at = FIRST;
    while at < end
        && let Some(length) = length_at(at)
    {
        if length > bytes.len() - at {
            return Err(DecodeError::Truncated);
        }
        at += HEADER + length.next_multiple_of(2);
    }
    Ok(())
}

/// Both the container and the lossy frame declare the image size. The decoder allocates memory for the frame's size
/// before it compares the two. <https://www.rfc-editor.org/rfc/rfc6386>, section 9.1
fn check_frames(bytes: &[u8], limits: &Limits) -> Result<(), DecodeError> {
    const CHUNK: &[u8] = b"VP8 ";
    const START: [u8; 3] = [0x9D, 0x01, 0x2A];
    for at in find_iter(bytes, CHUNK) {
        // Skips the chunk's name and length and the frame tag.
        let Some(&[a, b, c, w0, w1, h0, h1]) = bytes.get(at + 11..at + 18) else { continue };
        // The upper two bits are the display scale.
        let side = |low: u8, high: u8| u32::from(u16::from_le_bytes([low, high]) & 0x3FFF);
        let (width, height) = (side(w0, w1), side(h0, h1));
        if [a, b, c] == START && u64::from(width) * u64::from(height) > limits.pixels {
            return Err(DecodeError::Large { width, height, limit: limits.pixels });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::decode_reserved;
    use super::*;
    use crate::pixel_budget::PixelBudget;

    /// 24 by 17 pixels, from `tests/fuzz/seeds.py`.
    const LOSSY: &[u8] = include_bytes!("../../../tests/fuzz/seeds/image_file/lossy.webp");

    #[test]
    fn a_frame_larger_than_its_container_is_rejected_by_its_header() {
        let limits = Limits { pixels: 1 << 20, bytes: 1 << 20 };
        let decode = |bytes: &[u8]| decode_reserved(bytes, &limits, &PixelBudget::new(1 << 20)).map(|(image, _)| image);
        assert_eq!(decode(LOSSY).unwrap().dimensions(), (24, 17));
        let at = LOSSY.windows(3).position(|bytes| bytes == [0x9D, 0x01, 0x2A]).unwrap();
        let mut bytes = LOSSY.to_vec();
        bytes[at + 3..at + 7].copy_from_slice(&[0xFF, 0x3F, 0xFF, 0x3F]);
        let error = decode(&bytes).unwrap_err();
        assert!(matches!(error, DecodeError::Large { width: 16383, height: 16383, .. }), "{error}");
    }

    #[test]
    fn a_chunk_longer_than_the_file_is_rejected() {
        let mut bytes = LOSSY.to_vec();
        bytes.extend(b"EXIF\xFF\xFF\xFF\x7F");
        // Chunks after the container's declared end are ignored.
        assert!(check(&bytes, &Limits::DEFAULT).is_ok());
        bytes[4] += 8;
        assert!(matches!(check(&bytes, &Limits::DEFAULT), Err(DecodeError::Truncated)));
        for length in 0..bytes.len() {
            let _ = check(&bytes[..length], &Limits::DEFAULT);
        }
    }
}
