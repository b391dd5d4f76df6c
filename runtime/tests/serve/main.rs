//! `runtime serve` with models, over HTTP.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]
#![allow(dead_code, reason = "not every test uses all of the fixture")]

#[path = "../cli/fixture.rs"]
mod fixture;

mod client;
mod detect;
mod infer;
mod limits;
mod lifecycle;
mod models;
mod page;
mod statistics;
