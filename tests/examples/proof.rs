//! How well the exporter's proof tells right weights from damaged ones: ResNet-18 to 152 with every norm, before training and
//! with random weights, and 20 damaged tensors of each depth; or all tensors of checkpoints. Ends with an error where one is
//! told wrong.
//!
//! `cargo run --release -p tests --example proof [CHECKPOINT...]`

use std::path::PathBuf;

use anyhow::ensure;
use exporter::{ExportOptions, Exported, TOLERANCE, export};
use models::spec::NormKind;
use models::{AtomicFile, Checkpoint, parameters};
use runtime::EngineOptions;
use tch::Device;
use tests::damage::damage_each;
use trainer::parameters::{Layout, Parameters};

/// Tensors of a network that are damaged.
const DAMAGED: usize = 20;

fn main() -> anyhow::Result<()> {
    println!("{TOLERANCE} times what rounding does in libtorch are allowed");
    let checkpoints: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    for path in &checkpoints {
        let Checkpoint { spec, tensors, .. } = Checkpoint::open(path)?;
        // With a probe of today's, whatever version wrote the file.
        let checkpoint = tests::checkpoint_of(&spec, tensors);
        println!("{}", path.display());
        right(&checkpoint)?;
        damaged(&checkpoint, usize::MAX)?;
    }
    if !checkpoints.is_empty() {
        return Ok(());
    }
    for depth in [18, 34, 50, 101, 152] {
        for norm in [NormKind::FrozenBatch, NormKind::Batch, NormKind::Group] {
            let spec = tests::spec(&format!("resnet{depth}"), norm, 20);
            println!("ResNet-{depth}, {norm:?}, before training");
            let parameters = Parameters::random(&parameters(&spec)?, Layout::default(), Device::Cpu, 1);
            right(&tests::checkpoint_of(&spec, parameters.to_tensors()))?;
            println!("ResNet-{depth}, {norm:?}, random");
            let checkpoint = tests::checkpoint(&spec, 1);
            right(&checkpoint)?;
            if norm == NormKind::FrozenBatch {
                damaged(&checkpoint, DAMAGED)?;
            }
        }
    }
    Ok(())
}

/// Exports it as it is.
fn right(checkpoint: &Checkpoint) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let file = AtomicFile::create(&folder.path().join("model.onnx"))?;
    let Exported { differences, .. } =
        export(checkpoint.clone(), file, &ExportOptions::default(), &EngineOptions::default())?;
    println!("  right: {:.2} times", differences.times);
    Ok(())
}

fn damaged(checkpoint: &Checkpoint, count: usize) -> anyhow::Result<()> {
    let mut all = damage_each(checkpoint, count)?;
    let missed: Vec<_> = all.iter().filter(|damaged| damaged.missed).collect();
    ensure!(missed.is_empty(), "exported: {missed:?}");
    all.retain(|damaged| damaged.refused.is_some());
    all.sort_by(|a, b| a.refused.unwrap_or_default().total_cmp(&b.refused.unwrap_or_default()));
    let least =
        all.iter().take(3).map(|damaged| format!("{} {:.1}", damaged.name, damaged.refused.unwrap_or_default()));
    println!("  {} damaged, all refused; by the fewest times: {}", all.len(), least.collect::<Vec<_>>().join(", "));
    Ok(())
}
