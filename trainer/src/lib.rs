//! Trains RetinaNet with libtorch. The only crate that links it.

mod device;
pub mod torch;
pub mod parameters;
pub mod learner;
pub mod loss;
pub mod targets;
pub mod optimizer;

pub mod config;
pub mod augmentation;
pub mod cache;
pub mod loader;
mod validation;
mod run_folder;
mod progress;
pub mod memory;

pub mod fit;
pub mod init;
pub mod synth;
