//! Arbitrary bytes as a checkpoint give an error.

#![no_main]

use std::sync::LazyLock;

use fuzz::Scratch;
use libfuzzer_sys::fuzz_target;
use models::Checkpoint;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|bytes: &[u8]| {
    // The inputs are too short for a valid checkpoint.
    assert!(Checkpoint::open(&SCRATCH.file("checkpoint.safetensors", bytes)).is_err());
});
