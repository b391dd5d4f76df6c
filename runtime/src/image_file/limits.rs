//! Limits of images and files.

use super::error::DecodeError;

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
    pub(super) fn memory(&self) -> u64 {
        const WORKING_MEMORY: u64 = 1 << 24;
        self.pixels.saturating_mul(8).saturating_add(WORKING_MEMORY)
    }

    /// The limits in the terms of the crate `image`.
    pub(super) fn for_image(&self) -> image::Limits {
        let mut limits = image::Limits::no_limits();
        limits.max_alloc = Some(self.memory());
        limits
    }

    /// Checks the width and height of an image.
    pub(super) fn check(&self, (width, height): (u32, u32)) -> Result<(), DecodeError> {
        match u64::from(width) * u64::from(height) > self.pixels {
            true => Err(DecodeError::Large { width, height, limit: self.pixels }),
            false => Ok(()),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}
