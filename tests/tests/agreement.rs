//! One network, two interpreters: libtorch and ONNX Runtime say the same of the same weights.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use exporter::{OFFSET_TOLERANCE, SCORE_TOLERANCE, largest_difference, to_onnx};
use models::spec::NormKind;
use models::{RetinaNet, parameters};
use ndarray::{Array4, ArrayView3, Ix3};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use runtime::{Engine, EngineOptions};
use tch::{Device, Tensor};
use trainer::parameters::{Layout, Parameters, to_array};
use trainer::torch::{Inference, Torch};

/// Batch, height, width: two sizes, of which neither is square nor the probe's, and two batches.
const SIZES: [[usize; 3]; 4] = [[1, 64, 128], [3, 64, 128], [1, 160, 96], [3, 160, 96]];

fn agree(preset: &str) {
    for norm in [NormKind::FrozenBatch, NormKind::Batch, NormKind::Group] {
        let spec = tests::spec(preset, norm, 3);
        let checkpoint = tests::checkpoint(&spec, 1);
        let weights =
            Parameters::of_tensors(&parameters(&spec).unwrap(), Layout::default(), Device::Cpu, &checkpoint.tensors);
        let network = RetinaNet::<Inference>::new(&spec, &weights).unwrap();
        let onnx = to_onnx(&spec, checkpoint.tensors, &checkpoint.provenance).unwrap();
        let engine = Engine::from_bytes(preset, &onnx, &EngineOptions::default()).unwrap();
        for [batch, height, width] in SIZES {
            let mut random = ChaCha8Rng::seed_from_u64(2);
            let images = Array4::from_shape_simple_fn((batch, 3, height, width), || random.random_range(-2.0..2.0));
            let outputs = engine.run(images.view()).unwrap().into_dense().unwrap();

            let shape = [batch, 3, height, width].map(|n| n as i64);
            let input = Torch(Tensor::from_slice(images.as_slice().unwrap()).view(shape));
            let predictions = tch::no_grad(|| network.forward(&input));
            let largest = |ours: ArrayView3<f32>, theirs: &Torch<false>| {
                let theirs = to_array(&theirs.0).into_dimensionality::<Ix3>().unwrap();
                let (least, most) = theirs.iter().fold((f32::MAX, f32::MIN), |(a, b), x| (a.min(*x), b.max(*x)));
                assert!(
                    most - least > 0.1,
                    "{preset} {norm:?}: a network that says the same everywhere proves nothing"
                );
                largest_difference(theirs.view(), ours).unwrap()
            };
            let score = largest(outputs.scores(), &predictions.scores());
            let offset = largest(outputs.offsets(), &predictions.offsets);
            println!("{preset} {norm:?} {batch}x3x{height}x{width}: scores {score:.1e}, offsets {offset:.1e}");
            assert!(score <= SCORE_TOLERANCE, "{preset} {norm:?}: scores differ by {score}");
            assert!(offset <= OFFSET_TOLERANCE, "{preset} {norm:?}: offsets differ by {offset}");
        }
    }
}

#[test]
fn resnet18() {
    agree("resnet18");
}

#[test]
fn resnet34() {
    agree("resnet34");
}

#[test]
fn resnet50() {
    agree("resnet50");
}

#[test]
fn resnet101() {
    agree("resnet101");
}

#[test]
fn resnet152() {
    agree("resnet152");
}
