//! An image of any bytes is decoded within its limits, or refused.

#![no_main]

use std::sync::LazyLock;

use fuzz::Scratch;
use libfuzzer_sys::fuzz_target;
use runtime::image_file::{self, Limits};

/// One million pixels, of which a decoder may take 24 MiB.
const LIMITS: Limits = Limits { pixels: 1 << 20, bytes: 1 << 20 };

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|bytes: &[u8]| {
    let Ok(decoded) = image_file::decode_within(bytes, &LIMITS) else { return };
    let (width, height) = decoded.dimensions();
    assert!(u64::from(width) * u64::from(height) <= LIMITS.pixels);
    let told = image_file::size(SCRATCH.file("image", bytes)).expect("the size of a sound image can be told");
    assert_eq!(told, (width, height));
});
