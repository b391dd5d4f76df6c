//! A picture of any bytes is decoded within its limits, or refused.

#![no_main]

use std::sync::LazyLock;

use fuzz::Scratch;
use libfuzzer_sys::fuzz_target;
use runtime::picture::{self, Limits};

/// One million pixels, of which a decoder may take 24 MiB.
const LIMITS: Limits = Limits { pixels: 1 << 20, bytes: 1 << 20 };

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|bytes: &[u8]| {
    let Ok(decoded) = picture::decode_within(bytes, &LIMITS) else { return };
    let (width, height) = decoded.dimensions();
    assert!(u64::from(width) * u64::from(height) <= LIMITS.pixels);
    let told = picture::size(SCRATCH.file("picture", bytes)).expect("the size of a sound picture can be told");
    assert_eq!(told, (width, height));
});
