//! Arbitrary bytes as an image are decoded within the limits or give an error.

#![no_main]

use std::sync::LazyLock;

use fuzz::Scratch;
use libfuzzer_sys::fuzz_target;
use runtime::PixelBudget;
use runtime::image_file::{self, Limits};

/// One million pixels, for which a decoder may use 24 MiB.
const LIMITS: Limits = Limits { pixels: 1 << 20, bytes: 1 << 20 };

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|bytes: &[u8]| {
    let budget = PixelBudget::new(LIMITS.pixels);
    let Ok((decoded, _)) = image_file::decode_reserved(bytes, &LIMITS, &budget) else { return };
    let (width, height) = decoded.dimensions();
    assert!(u64::from(width) * u64::from(height) <= LIMITS.pixels);
    let size = image_file::size(SCRATCH.file("image", bytes)).expect("the size of a valid image can be read");
    assert_eq!(size, (width, height));
});
