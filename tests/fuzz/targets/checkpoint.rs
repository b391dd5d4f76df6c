//! A checkpoint of any bytes is refused, unless it is one.

#![no_main]

use std::sync::LazyLock;

use fuzz::Scratch;
use libfuzzer_sys::fuzz_target;
use models::Checkpoint;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|bytes: &[u8]| {
    // One that is sound needs more bytes than there are.
    assert!(Checkpoint::open(&SCRATCH.file("checkpoint.safetensors", bytes)).is_err());
});
