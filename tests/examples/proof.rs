//! How well the exporter's verification separates intact from damaged weights: ResNet-18 to 152 with every norm, with
//! initial and with random weights, and 20 damaged tensors of each depth; or every tensor of the given checkpoints.
//! Fails if an intact checkpoint is refused or a damaged one is exported.
//!
//! `cargo run --release -p tests --example proof [CHECKPOINT...]`

use std::path::PathBuf;

use anyhow::ensure;
use exporter::{ExportOptions, Exported, OutputFile, TOLERANCE, export};
use models::spec::NormKind;
use models::{Checkpoint, parameters};
use runtime::EngineOptions;
use tch::Device;
use tests::damage::damage_each;
use trainer::parameters::{Layout, Parameters};

/// Number of damaged tensors per depth.
const DAMAGED: usize = 20;

fn main() -> anyhow::Result<()> {
    println!("tolerance: {TOLERANCE} times the rounding error of libtorch");
    let checkpoints: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    for path in &checkpoints {
        let Checkpoint { spec, tensors, .. } = Checkpoint::open(path)?;
        // Computes a new probe, whatever version wrote the file.
        let checkpoint = tests::checkpoint_of(&spec, tensors);
        println!("{}", path.display());
        export_intact(&checkpoint)?;
        export_damaged(&checkpoint, usize::MAX)?;
    }
    if !checkpoints.is_empty() {
        return Ok(());
    }
    for depth in [18, 34, 50, 101, 152] {
        for norm in [NormKind::FrozenBatch, NormKind::Batch, NormKind::Group] {
            let spec = tests::spec(&format!("resnet{depth}"), norm, 20);
            println!("ResNet-{depth}, {norm:?}, initial weights");
            let parameters = Parameters::random(&parameters(&spec)?, Layout::default(), Device::Cpu, 1);
            export_intact(&tests::checkpoint_of(&spec, parameters.to_tensors()))?;
            println!("ResNet-{depth}, {norm:?}, random weights");
            let checkpoint = tests::checkpoint(&spec, 1);
            export_intact(&checkpoint)?;
            if norm == NormKind::FrozenBatch {
                export_damaged(&checkpoint, DAMAGED)?;
            }
        }
    }
    Ok(())
}

/// Exports the checkpoint unchanged.
fn export_intact(checkpoint: &Checkpoint) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let file = OutputFile::create(&folder.path().join("model.onnx"))?;
    let Exported { differences, .. } =
        export(checkpoint.clone(), file, &ExportOptions::default(), &EngineOptions::default(), &mut |_, _| {})?;
    println!("  intact: {:.2} times the rounding error", differences.error_ratio);
    Ok(())
}

/// Exports the checkpoint with each of `count` tensors damaged.
fn export_damaged(checkpoint: &Checkpoint, count: usize) -> anyhow::Result<()> {
    let mut all = damage_each(checkpoint, count)?;
    let missed: Vec<_> = all.iter().filter(|damaged| damaged.missed).collect();
    ensure!(missed.is_empty(), "damaged checkpoints were exported: {missed:?}");
    all.retain(|damaged| damaged.refused.is_some());
    all.sort_by(|a, b| a.refused.unwrap_or_default().total_cmp(&b.refused.unwrap_or_default()));
    let min = all.iter().take(3).map(|damaged| format!("{} {:.1}", damaged.name, damaged.refused.unwrap_or_default()));
    println!("  {} damaged, all refused; smallest differences: {}", all.len(), min.collect::<Vec<_>>().join(", "));
    Ok(())
}
