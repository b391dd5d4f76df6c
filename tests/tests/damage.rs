//! The exporter's verification refuses weights that differ by one percent in a single tensor.
//! `cargo run --release -p tests --example proof` tests deeper networks.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use models::spec::NormKind;
use models::{Checkpoint, ModelSpec, parameters};
use tch::Device;
use tests::damage::damage_each;
use trainer::parameters::{Layout, Parameters};

/// Damages `count` tensors, asserts that every export with changed outputs is refused, and counts the refusals.
fn refused(checkpoint: &Checkpoint, count: usize) -> usize {
    let all = damage_each(checkpoint, count).unwrap();
    let missed: Vec<_> = all.iter().filter(|damaged| damaged.missed).collect();
    assert!(missed.is_empty(), "{missed:?}");
    all.iter().filter(|damaged| damaged.refused.is_some()).count()
}

/// ResNet-18 with its usual widths, and a small pyramid and heads.
fn spec(norm: NormKind) -> ModelSpec {
    let mut spec = tests::spec("resnet18", norm, 3);
    (spec.pyramid.width, spec.heads.width, spec.heads.depth) = (32, 32, 2);
    spec
}

#[test]
fn damage_to_any_tensor_of_random_weights_is_refused() {
    // Every second tensor; the example tests all.
    let checkpoint = tests::checkpoint(&spec(NormKind::Batch), 1);
    let count = checkpoint.tensors.len() / 2;
    assert_eq!(refused(&checkpoint, count), count);
}

#[test]
fn damaged_initial_weights_are_refused() {
    let spec = spec(NormKind::Group);
    let list = parameters(&spec).unwrap();
    let parameters = Parameters::random(&list, Layout::default(), Device::Cpu, 2);
    let checkpoint = tests::checkpoint_of(&spec, parameters.to_tensors());
    // The other tensors are biases: they are zero, so scaling does not change them.
    assert!(refused(&checkpoint, 40) >= 25);
}

#[test]
fn damaged_tensors_of_a_full_size_network_are_refused() {
    assert_eq!(refused(&tests::checkpoint(&tests::spec("resnet18", NormKind::FrozenBatch, 20), 3), 12), 12);
}
