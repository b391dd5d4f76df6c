//! Tests of the program `trainer`, by command and, for `fit`, by theme.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod bench;
mod check;
mod config;
mod data;
mod distributed;
mod evaluation;
mod failures;
mod fit;
mod folders;
mod import;
mod layouts;
mod project;
mod report;
mod resume;
