//! What the decoder of TIFF does not look at before it takes memory.

use super::DecodeError;

/// Refuses a first directory that promises more values than the file has bytes: the decoder takes memory for what is promised.
/// <https://www.loc.gov/preservation/digital/formats/content/tiff_tags.shtml>, TIFF 6.0, section 2; BigTIFF has longer numbers.
pub(super) fn check(bytes: &[u8]) -> Result<(), DecodeError> {
    match longest_value(bytes) {
        Some(length) if length > bytes.len() as u64 => Err(DecodeError::Truncated),
        // What has no directory at all is for the decoder to say.
        _ => Ok(()),
    }
}

/// Bytes of the longest value in the first directory.
fn longest_value(bytes: &[u8]) -> Option<u64> {
    let file = File { bytes, big_endian: bytes.starts_with(b"MM") };
    // 43 says BigTIFF, 42 the usual.
    let (directory, entries, first, entry) = match file.number(2, 2)? {
        43 => (file.number(8, 8)?, 8, 8, Entry { length: 20, count: 8 }),
        _ => (file.number(4, 4)?, 2, 2, Entry { length: 12, count: 4 }),
    };
    let number = file.number(directory, entries)?;
    let mut longest = 0;
    // An entry is its tag, its type, how many values it has, and these or where they are.
    for at in (0..number).map(|place| directory.checked_add(first)?.checked_add(place.checked_mul(entry.length)?)) {
        let at = at?;
        let (Some(kind), Some(count)) =
            (file.number(at.checked_add(2)?, 2), file.number(at.checked_add(4)?, entry.count))
        else {
            // The file ends within its directory.
            break;
        };
        let size = match kind {
            3 | 8 => 2,
            4 | 9 | 11 | 13 => 4,
            5 | 10 | 12 | 16..=18 => 8,
            _ => 1,
        };
        longest = longest.max(count.saturating_mul(size));
    }
    Some(longest)
}

struct Entry {
    length: u64,
    /// Bytes of the number of values.
    count: u64,
}

struct File<'a> {
    bytes: &'a [u8],
    big_endian: bool,
}

impl File<'_> {
    /// The number of `length` bytes at a place.
    fn number(&self, at: u64, length: u64) -> Option<u64> {
        let at = usize::try_from(at).ok()?;
        let digits = self.bytes.get(at..at.checked_add(length as usize)?)?;
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
    fn a_directory_that_promises_more_than_the_file_has_is_truncated() {
        let mut bytes = encode(&RgbImage::new(8, 8), ImageFormat::Tiff);
        assert!(decode(&bytes).is_ok() && longest_value(&bytes).unwrap() < 100);
        // The entry of tag 258, BitsPerSample: 3 numbers of 16 bits.
        let at = bytes.windows(8).position(|entry| entry == [2, 1, 3, 0, 3, 0, 0, 0]).unwrap();
        bytes[at + 4..at + 8].copy_from_slice(&[0, 0, 0x40, 0]);
        assert_eq!(longest_value(&bytes), Some(8 << 20));
        assert!(matches!(decode(&bytes), Err(DecodeError::Truncated)));
    }

    #[test]
    fn both_orders_of_bytes_and_long_numbers_are_understood() {
        // One entry of 9 numbers of 64 bits, type 16.
        let big = [
            &b"MM\0\x2B\0\x08\0\0\0\0\0\0\0\0\0\x10"[..],
            &[0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 16],
            &[0, 0, 0, 0, 0, 0, 0, 9],
        ];
        assert_eq!(longest_value(&big.concat()), Some(72));
        let cut = &big.concat()[..20];
        assert_eq!(longest_value(cut), None);
        let endless = [&b"II\x2A\0\x08\0\0\0"[..], &[0xFF, 0xFF, 1, 1, 4, 0, 0xFF, 0xFF, 0xFF, 0xFF]].concat();
        assert_eq!(longest_value(&endless), Some(4 * 0xFFFF_FFFF));
        assert_eq!(longest_value(b"II"), None);
    }
}
