//! The program `runtime`. `tests/serve` tests the server.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod arguments;
mod detect;
mod fixture;
mod info_and_bench;
#[cfg(target_os = "linux")]
mod interrupts;
mod large_images;
#[allow(dead_code, reason = "`tests/tiff.rs` uses the rest")]
mod orthomosaic;
mod resources;
mod runs;
mod score;
mod video;
