//! What the proof is for: no file is written of weights that are off by one percent in a single tensor.
//! `cargo run --release -p tests --example proof` shows the same of deeper networks.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use models::spec::NormKind;
use models::{Checkpoint, ModelSpec, parameters};
use tch::Device;
use tests::damage::damage_each;
use trainer::parameters::{Layout, Parameters};

/// Damages `count` tensors, and says how many are refused: all that change what the network computes.
fn refused(checkpoint: &Checkpoint, count: usize) -> usize {
    let all = damage_each(checkpoint, count).unwrap();
    let missed: Vec<_> = all.iter().filter(|damaged| damaged.missed).collect();
    assert!(missed.is_empty(), "{missed:?}");
    all.iter().filter(|damaged| damaged.refused.is_some()).count()
}

/// ResNet-18 with real widths up to its last block, and small subnets.
fn spec(norm: NormKind) -> ModelSpec {
    let mut spec = tests::spec("resnet18", norm, 3);
    (spec.pyramid.width, spec.heads.width, spec.heads.depth) = (32, 32, 2);
    spec
}

#[test]
fn every_damaged_tensor_of_random_weights_is_refused() {
    let spec = spec(NormKind::Batch);
    let checkpoint = tests::checkpoint(&spec, 1);
    assert_eq!(refused(&checkpoint, usize::MAX), parameters(&spec).unwrap().len());
}

#[test]
fn damaged_tensors_are_refused_before_training_too() {
    let spec = spec(NormKind::Group);
    let list = parameters(&spec).unwrap();
    let parameters = Parameters::random(&list, Layout::default(), Device::Cpu, 2);
    let checkpoint = tests::checkpoint_of(&spec, parameters.to_tensors());
    // The others are biases, which are zero and stay so.
    assert!(refused(&checkpoint, 40) >= 25);
}

#[test]
fn damaged_tensors_of_a_whole_network_are_refused() {
    assert_eq!(refused(&tests::checkpoint(&tests::spec("resnet18", NormKind::FrozenBatch, 20), 3), 12), 12);
}
