//! Trains RetinaNet with libtorch. Except for `tests`, no other crate links libtorch.

mod device;
pub mod group;
mod sync_batch_norm;
pub mod torch;
pub mod part;
pub mod parameters;
pub mod checkpoint;
pub mod step;
pub mod step_totals;
pub mod interrupt;
pub mod training_model;
mod training_network;
pub mod failure;
mod cpu_watch;
pub mod loss;
pub mod loss_scaler;
pub mod precision;
pub mod box_loss;
pub mod targets;
pub mod optimizer;
pub mod schedule;
pub mod average;
mod transfer;

pub mod interval;
pub mod batch_size;
pub mod config;
pub mod overrides;
mod differences;
mod agreement;
mod resumption;
pub mod augmentation;
pub mod cache;
pub mod loader;
mod largest_batch;
mod annotated;
mod candidates;
pub mod predictor;
mod run;
mod progress;
pub mod memory;

mod machine;

pub mod report;

pub mod bench;
pub mod check;
pub mod eval;
pub mod fit;
pub mod import;
pub mod init;
mod splits;
pub mod synth;

use runtime::evaluation_report::EvaluationReport;
use runtime::schema::{Schemas, read, written};
use serde_json::Value;

/// The schemas of the files that the commands read and write.
pub fn schemas() -> Schemas {
    let mut configuration = read::<config::TrainConfig>();
    // It depends on the machine.
    let workers = configuration.pointer_mut("/$defs/RunConfig/properties/workers").and_then(Value::as_object_mut);
    workers.expect("the section has this key").remove("default");
    vec![
        ("configuration", configuration),
        ("log", written::<run::log::Record>()),
        ("check", written::<check::CheckReport>()),
        ("evaluation", written::<EvaluationReport>()),
        ("bench", written::<bench::Measured>()),
    ]
}
