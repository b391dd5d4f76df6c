//! The program `exporter`, on checkpoints with random weights.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod describe;
mod end_to_end;
mod export;
mod fixture;
mod precision;
mod refusals;
mod variants;
mod verification;
