//! Checks that the TIFF decoder omits before it allocates memory.

use super::DecodeError;

/// Rejects files whose first directory declares a value longer than the file: the decoder allocates the declared
/// length. <https://www.loc.gov/preservation/digital/formats/content/tiff_tags.shtml>, TIFF 6.0, section 2; BigTIFF has
/// 64-bit offsets.
pub(super) fn check(bytes: &[u8]) -> Result<(), DecodeError> {
    match max_value_length(bytes) {
        Some(length) if length > bytes.len() as u64 => Err(DecodeError::Truncated),
        // The decoder reports files without a directory.
        _ => Ok(()),
    }
}

/// Bytes of the longest value in the first directory; `None` if the file has no directory.
fn max_value_length(bytes: &[u8]) -> Option<u64> {
    let file = File { bytes, big_endian: bytes.starts_with(b"MM") };
    // The version is 43 for BigTIFF, and 42 for TIFF.
    let (directory, entries, first, entry) = match file.number(2, 2)? {
        43 => (file.number(8, 8)?, 8, 8, Entry { length: 20, count: 8 }),
        _ => (file.number(4, 4)?, 2, 2, Entry { length: 12, count: 4 }),
    };
    let number = file.number(directory, entries)?;
    let mut max_length = 0;
    // An entry consists of its tag, type, number of values, and the values or their offset.
    for offset in (0..number).map(|index| directory.checked_add(first)?.checked_add(index.checked_mul(entry.length)?)) {
        let offset = offset?;
        let (Some(kind), Some(count)) =
            (file.number(offset.checked_add(2)?, 2), file.number(offset.checked_add(4)?, entry.count))
        else {
            // The file ends inside the directory.
            break;
        };
        let size = match kind {
            3 | 8 => 2,
            4 | 9 | 11 | 13 => 4,
            5 | 10 | 12 | 16..=18 => 8,
            _ => 1,
        };
        max_length = max_length.max(count.saturating_mul(size));
    }
    Some(max_length)
}

struct Entry {
    /// Bytes of an entry.
    length: u64,
    /// Bytes of its field for the number of values.
    count: u64,
}

struct File<'a> {
    bytes: &'a [u8],
    big_endian: bool,
}

impl File<'_> {
    /// The unsigned integer of `length` bytes at an offset.
    fn number(&self, offset: u64, length: u64) -> Option<u64> {
        let offset = usize::try_from(offset).ok()?;
        let digits = self.bytes.get(offset..offset.checked_add(length as usize)?)?;
        let add = |sum: u64, digit: &u8| sum << 8 | u64::from(*digit);
        Some(if self.big_endian { digits.iter().fold(0, add) } else { digits.iter().rev().fold(0, add) })
    }
}

#[cfg(test)]
mod tests {
    use image::{ImageFormat, RgbImage};

    use super::super::{decode, tests::encode};
    use super::*;

    #[test]
    fn a_value_longer_than_the_file_is_rejected() {
        let mut bytes = encode(&RgbImage::new(8, 8), ImageFormat::Tiff);
        assert!(decode(&bytes).is_ok() && max_value_length(&bytes).unwrap() < 100);
        // The entry of tag 258, BitsPerSample: 3 numbers of 16 bits.
        let at = bytes.windows(8).position(|entry| entry == [2, 1, 3, 0, 3, 0, 0, 0]).unwrap();
        bytes[at + 4..at + 8].copy_from_slice(&[0, 0, 0x40, 0]);
        assert_eq!(max_value_length(&bytes), Some(8 << 20));
        assert!(matches!(decode(&bytes), Err(DecodeError::Truncated)));
    }

    #[test]
    fn both_byte_orders_and_bigtiff_are_supported() {
        // BigTIFF with one entry of type 16: 9 numbers of 64 bits.
        let big = [
            &b"MM\0\x2B\0\x08\0\0\0\0\0\0\0\0\0\x10"[..],
            &[0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 16],
            &[0, 0, 0, 0, 0, 0, 0, 9],
        ];
        assert_eq!(max_value_length(&big.concat()), Some(72));
        let truncated = &big.concat()[..20];
        assert_eq!(max_value_length(truncated), None);
        let huge = [&b"II\x2A\0\x08\0\0\0"[..], &[0xFF, 0xFF, 1, 1, 4, 0, 0xFF, 0xFF, 0xFF, 0xFF]].concat();
        assert_eq!(max_value_length(&huge), Some(4 * 0xFFFF_FFFF));
        assert_eq!(max_value_length(b"II"), None);
    }
}
