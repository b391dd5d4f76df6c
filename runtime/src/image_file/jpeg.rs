//! A check that the JPEG decoder omits.

/// Whether a JPEG stream has its end marker. The decoder fills missing parts with gray and reports no error.
pub(super) fn has_end_marker(bytes: &[u8]) -> bool {
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

#[cfg(test)]
mod tests {
    use super::super::tests::{encode, sample};
    use super::super::{DecodeError, decode};
    use image::ImageFormat;

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
}
