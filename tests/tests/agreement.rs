//! libtorch and ONNX Runtime compute the same outputs for the same weights.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use exporter::{HeadValues, fold_batch_norms, to_onnx, trace};
use models::parameters;
use models::spec::NormKind;
use ndarray::Array4;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use runtime::EngineOptions;
use tch::Device;
use trainer::checkpoint::head_outputs;
use trainer::parameters::{Layout, Parameters};
use trainer::torch::images;

/// Batch size, height, width: two image sizes, neither square nor the probe's, and two batch sizes.
const SIZES: [[usize; 3]; 4] = [[1, 64, 128], [3, 64, 128], [1, 160, 96], [3, 160, 96]];

/// All kinds with both kinds of blocks; the other depths have more of the same blocks.
const ALL_NORMS: [NormKind; 3] = [NormKind::FrozenBatch, NormKind::Batch, NormKind::Group];

/// Maximum RMS difference of logits, offsets, and features of a level, relative to their standard deviation. With
/// these weights, the order of summation alone causes 1.3e-6 in float32.
const TOLERANCE: f64 = 5e-6;

fn assert_agreement(preset: &str, norms: &[NormKind]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    for &norm in norms {
        let spec = tests::spec(preset, norm, 3);
        let tensors = tests::tensors(&spec, 1);
        let weights = Parameters::from_tensors(&parameters(&spec).unwrap(), Layout::default(), Device::Cpu, &tensors);
        let mut graph = trace(&spec, tensors.clone()).unwrap();
        fold_batch_norms(&mut graph);
        std::fs::write(&path, to_onnx(&spec, tensors, &Default::default()).unwrap()).unwrap();
        let mut heads = HeadValues::of(&graph).open(&path, &EngineOptions::default()).unwrap();
        for [batch, height, width] in SIZES {
            let mut random = ChaCha8Rng::seed_from_u64(2);
            let pixels = Array4::from_shape_simple_fn((batch, 3, height, width), || random.random_range(-2.0..2.0));
            let found = heads.read(pixels.view(), &spec).unwrap().heads;
            let expected = head_outputs(&spec, &weights, &images(&pixels)).unwrap();
            for deviation in expected.deviations(&found, [height, width]) {
                assert!(deviation.expected_std() > 0.0, "{preset} {norm:?}: constant outputs prove nothing");
                let error = deviation.relative();
                assert!(error <= TOLERANCE, "{preset} {norm:?} {batch}x3x{height}x{width}: relative error {error}");
            }
        }
    }
}

#[test]
fn resnet18_outputs_agree() {
    assert_agreement("resnet18", &ALL_NORMS);
}

#[test]
fn resnet34_outputs_agree() {
    assert_agreement("resnet34", &[NormKind::Group]);
}

#[test]
fn resnet50_outputs_agree() {
    assert_agreement("resnet50", &ALL_NORMS);
}

#[test]
fn resnet101_outputs_agree() {
    assert_agreement("resnet101", &[NormKind::Batch]);
}

#[test]
fn resnet152_outputs_agree() {
    assert_agreement("resnet152", &[NormKind::FrozenBatch]);
}
