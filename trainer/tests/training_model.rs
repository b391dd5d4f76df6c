//! Training steps with every option that changes them.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::collections::BTreeMap;

use models::spec::{Affine, Class, NormKind};
use models::{Anchors, BoundingBox, Matcher, ModelSpec, Pretrained, Provenance};
use ndarray::{Array4, ArrayD};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use trainer::config::TrainConfig;
use trainer::group::Halt;
use trainer::interrupt::Interrupt;
use trainer::loader::{Batch, BatchImages};
use trainer::loss_scaler::LossScaler;
use trainer::part::Part;
use trainer::precision::Precision;
use trainer::schedule::{Patience, SchedulePosition};
use trainer::step::{StageSeconds, Step};
use trainer::step_totals::StepTotals;
use trainer::targets::{Normalizer, Object, Targets};
use trainer::training_model::TrainingModel;

const SIDE: usize = 64;

/// Maximum relative difference of sums in different order.
const SUM_ORDER_TOLERANCE: f64 = 1e-4;

/// Maximum relative difference of losses in bfloat16, which has 8 bits of precision.
const BFLOAT16_TOLERANCE: f64 = 0.03;

/// Maximum relative difference of gradients in float16, which has 11 bits of precision.
const FLOAT16_TOLERANCE: f64 = 0.03;

fn spec(norm: NormKind) -> ModelSpec {
    let mut spec = ModelSpec::preset("resnet18").unwrap();
    spec.classes = vec![Class { id: 1, name: "a".to_owned() }, Class { id: 2, name: "b".to_owned() }];
    (spec.backbone.norm.kind, spec.pyramid.width, spec.heads.width, spec.heads.depth) = (norm, 16, 16, 1);
    spec
}

fn config() -> TrainConfig {
    let unused = "{annotations: unused, images: unused}";
    let mut config: TrainConfig =
        serde_yaml::from_str(&format!("data: {{train: {unused}, validation: {unused}}}")).unwrap();
    (config.schedule.warmup_steps, config.optimizer.clip_grad_norm) = (0, None);
    config
}

/// A batch with one random image per seed.
fn batch(seeds: &[u64]) -> Batch {
    batch_with(seeds, Normalizer::Image)
}

fn batch_with(seeds: &[u64], normalizer: Normalizer) -> Batch {
    let spec = spec(NormKind::Batch);
    let (mut images, mut objects) = (Vec::new(), Vec::new());
    for seed in seeds {
        let mut random = ChaCha8Rng::seed_from_u64(*seed);
        images.extend((0..3 * SIDE * SIDE).map(|_| random.random_range(-2.0f32..2.0)));
        let (x, y) = (random.random_range(0.0..20.0), random.random_range(0.0..20.0));
        let bounding_box = BoundingBox::new(x, y, x + 33.0, y + 30.0);
        objects.push(vec![Object { class_index: *seed as usize % 2, bounding_box }]);
    }
    let images = Array4::from_shape_vec((seeds.len(), 3, SIDE, SIDE), images).unwrap();
    let anchors = Anchors::new(&spec.anchors, SIDE, SIDE);
    let targets = Targets::new(&objects, &anchors, &Matcher::default(), &spec.box_coder, normalizer);
    let placements = vec![spec.preprocessing.place(SIDE as u32, SIDE as u32); seeds.len()];
    let indices = seeds.iter().map(|seed| *seed as usize).collect();
    Batch::new(BatchImages::Normalized(images), targets, placements, indices)
}

fn at(step: u64) -> SchedulePosition {
    SchedulePosition { step, steps: 100, epoch: 0, patience: Patience::default() }
}

type Tensors = BTreeMap<String, ArrayD<f32>>;

/// Makes `count` steps on the same batches. Returns the network, its tensors before the steps, and the results of the
/// steps.
fn train(spec: &ModelSpec, config: &TrainConfig, batches: &[Batch], count: u64) -> (TrainingModel, Tensors, Vec<Step>) {
    let mut model = TrainingModel::new(spec, config, tch::Device::Cpu).unwrap();
    // In float16, the first steps are not skipped at this scale.
    model.loss_scaler = model.loss_scaler.map(|scaler| LossScaler { scale: 256.0, ..scaler });
    let before = model.parameters.to_tensors();
    let steps = (0..count).map(|step| model.step(batches, &at(step)).unwrap()).collect();
    (model, before, steps)
}

/// The maximum difference between `a` and `b`, relative to the maximum difference between `a` and `before`.
fn distance(before: &Tensors, a: &Tensors, b: &Tensors) -> f64 {
    let max_difference = |a: &Tensors, b: &Tensors| {
        let pairs = a.values().flatten().zip(b.values().flatten());
        pairs.map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max)
    };
    assert!(before != a);
    max_difference(a, b) / max_difference(a, before)
}

#[test]
fn frozen_parts_keep_weights_and_statistics() {
    let spec = spec(NormKind::Batch);
    for freeze in [None, Some(Part::Stem), Some(Part::Stage2), Some(Part::Stage4), Some(Part::Pyramid)] {
        let mut config = config();
        config.run.freeze = freeze;
        let (model, before, steps) = train(&spec, &config, &[batch(&[1, 2])], 2);
        assert!(steps.iter().all(Step::is_finite));
        for (name, tensor) in model.parameters.to_tensors() {
            let trainable = freeze.is_none_or(|freeze| Part::of(&name) > freeze);
            // The classifier's weights start at zero, so the layers before it get their first gradient in step 2.
            assert_eq!(tensor != before[&name], trainable, "{name} with {freeze:?} frozen");
        }
    }
}

#[test]
fn gradient_accumulation_equals_one_large_batch() {
    let spec = spec(NormKind::Group);
    let mut config = config();
    config.optimizer.kind = trainer::optimizer::OptimizerKind::Sgd;
    for normalizer in [Normalizer::Image, Normalizer::Batch] {
        config.loss.normalizer = normalizer;
        let batch = |seeds: &[u64]| batch_with(seeds, normalizer);
        let (whole, before, _) = train(&spec, &config, &[batch(&[1, 2, 3])], 1);
        let (parts, _, _) = train(&spec, &config, &[batch(&[1, 2]), batch(&[3])], 1);
        let (part, _, _) = train(&spec, &config, &[batch(&[1, 2])], 1);
        let [whole, parts, part] = [whole, parts, part].map(|model| model.parameters.to_tensors());
        assert!(distance(&before, &whole, &parts) < SUM_ORDER_TOLERANCE, "{normalizer:?}");
        assert!(distance(&before, &whole, &part) > 0.1, "{normalizer:?}");
    }
}

#[test]
fn an_interrupted_step_changes_nothing() {
    let mut model = TrainingModel::new(&spec(NormKind::Batch), &config(), tch::Device::Cpu).unwrap();
    let before = model.parameters.to_tensors();
    let interrupt = Interrupt::default();
    assert!(!interrupt.raise() && interrupt.raise() && interrupt.is_raised());
    let one_batch = StepTotals { batches: 1, images: 1, divisor: 1 };
    let error = model.step_unless(&[batch(&[1])], one_batch, &at(0), &interrupt).unwrap_err();
    assert!(matches!(error, Halt::Interrupted), "{error}");
    assert!(model.parameters.to_tensors() == before && model.optimizer.steps == 0 && !model.is_torn());
    model.step_unless(&[batch(&[1])], one_batch, &at(0), &Interrupt::default()).unwrap();
    assert!(model.parameters.to_tensors() != before);
}

#[test]
fn channels_last_changes_results_only_by_rounding() {
    let spec = spec(NormKind::Batch);
    let mut config = config();
    config.optimizer.kind = trainer::optimizer::OptimizerKind::Sgd;
    let (channels_first, before, _) = train(&spec, &config, &[batch(&[1, 2])], 2);
    config.run.channels_last = true;
    let (channels_last, _, _) = train(&spec, &config, &[batch(&[1, 2])], 2);
    let [first, last] = [&channels_first, &channels_last].map(|model| model.parameters.to_tensors());
    assert!(distance(&before, &first, &last) < 10.0 * SUM_ORDER_TOLERANCE);
    let kernel = channels_last.parameters.view("layer2.0.conv2.weight").unwrap();
    assert_eq!(kernel.stride(), [9 * 128, 1, 3 * 128, 128], "the kernel's channels are last");
}

#[test]
fn training_in_16_bits_has_nearly_the_same_losses() {
    // libtorch computes float16 slowly on CPUs.
    for (norm, precision) in [
        (NormKind::Batch, Precision::Bfloat16),
        (NormKind::Group, Precision::Bfloat16),
        (NormKind::FrozenBatch, Precision::Bfloat16),
        (NormKind::Batch, Precision::Float16),
    ] {
        let spec = spec(norm);
        let mut config = config();
        config.optimizer.learning_rate = 1e-5;
        let (_, _, float) = train(&spec, &config, &[batch(&[1, 2])], 3);
        config.run.precision = precision;
        let (half, before, steps) = train(&spec, &config, &[batch(&[1, 2])], 3);
        let close = |a: f64, b: f64| (a - b).abs() <= BFLOAT16_TOLERANCE * b.abs();
        // The first step depends only on biases, because the weights of the `output` convolutions start at zero.
        for (half, float) in steps.iter().zip(&float) {
            assert!(close(half.classification_loss, float.classification_loss), "{norm:?}: {half:?}, {float:?}");
            assert!(close(half.box_loss, float.box_loss), "{norm:?}: {half:?}, {float:?}");
        }
        assert_ne!(steps[2].box_loss, float[2].box_loss);
        assert!(steps.iter().all(Step::is_finite) && half.parameters.to_tensors() != before);
    }
}

/// The scale is taken out of the gradient before its norm is clipped, and batches are accumulated with the same scale.
#[test]
fn float16_gradients_are_those_of_float32() {
    let spec = spec(NormKind::Group);
    let mut config = config();
    config.optimizer.kind = trainer::optimizer::OptimizerKind::Sgd;
    config.optimizer.clip_grad_norm = Some(0.01);
    let (float, before, expected) = train(&spec, &config, &[batch(&[1, 2])], 1);
    config.run.precision = Precision::Float16;
    let (half, _, steps) = train(&spec, &config, &[batch(&[1]), batch(&[2])], 1);
    assert!((steps[0].gradient_norm / expected[0].gradient_norm - 1.0).abs() < FLOAT16_TOLERANCE, "{steps:?}");
    let distance = distance(&before, &float.parameters.to_tensors(), &half.parameters.to_tensors());
    assert!(distance < FLOAT16_TOLERANCE, "{distance}");
}

#[test]
fn float16_steps_with_infinite_gradients_are_skipped() {
    let mut config = config();
    (config.run.precision, config.run.ema_decay) = (Precision::Float16, Some(0.5));
    let mut model = TrainingModel::new(&spec(NormKind::Group), &config, tch::Device::Cpu).unwrap();
    let state = |model: &TrainingModel| {
        let moments: Vec<f64> = model.optimizer.moments.iter().map(|moment| moment.norm().double_value(&[])).collect();
        let average = model.average.as_ref().unwrap().parameters.to_tensors();
        (model.parameters.to_tensors(), average, moments, model.optimizer.steps)
    };
    let before = state(&model);
    let huge = 2f64.powi(40);
    model.loss_scaler = Some(LossScaler { scale: huge, finite_steps: 7, skipped: 0 });
    let step = model.step(&[batch(&[1]), batch(&[2])], &at(0)).unwrap();
    assert!(step.is_finite() && step.is_skipped() && step.loss_scale == Some(huge), "{step:?}");
    assert!(state(&model) == before);
    assert_eq!(model.loss_scaler, Some(LossScaler { scale: huge / 2.0, finite_steps: 0, skipped: 1 }));

    model.loss_scaler = Some(LossScaler { scale: 1024.0, ..LossScaler::default() });
    let step = model.step(&[batch(&[1])], &at(1)).unwrap();
    assert!(step.is_finite() && !step.is_skipped());
    assert!(state(&model) != before && model.optimizer.steps == 1);
    assert_eq!(model.loss_scaler, Some(LossScaler { scale: 1024.0, finite_steps: 1, skipped: 0 }));
}

#[test]
fn infinite_gradients_without_a_scale_are_no_skipped_step() {
    let step = |loss_scale| Step {
        classification_loss: 1.0,
        box_loss: 1.0,
        gradient_norm: f64::INFINITY,
        learning_rate: 0.1,
        loss_scale,
        seconds: StageSeconds::default(),
    };
    let finite = [None, Some(1.0), Some(2.0)].map(|scale| step(scale).is_finite());
    assert_eq!(finite, [false, false, true]);
    assert!(!Step { box_loss: f64::NAN, ..step(Some(2.0)) }.is_finite());
}

/// Weight decay, the optimizer and the average leave frozen batch norms alone; with `affine: trainable`, scale and shift
/// learn, but statistics do not change.
#[test]
fn frozen_batch_norms_train_scale_and_shift_only_if_affine_is_trainable() {
    let mut config = config();
    (config.run.ema_decay, config.optimizer.weight_decay) = (Some(0.5), 0.1);
    for affine in [None, Some(Affine::Frozen), Some(Affine::Trainable)] {
        let mut spec = spec(NormKind::FrozenBatch);
        spec.backbone.norm.affine = affine;
        let (model, before, _) = train(&spec, &config, &[batch(&[1, 2])], 3);
        let checkpoint = model.checkpoint(Provenance::default()).unwrap();
        for after in [model.parameters.to_tensors(), checkpoint.tensors] {
            assert_eq!(after.len(), before.len());
            let norms = before.iter().filter(|(name, _)| name.contains("bn") || name.contains("downsample.1"));
            for (name, before) in norms {
                let trains = affine == Some(Affine::Trainable) && !name.contains("running_");
                assert_eq!(after[name] != before, trains, "{affine:?}: {name}");
            }
            assert!(after["layer4.0.conv1.weight"] != before["layer4.0.conv1.weight"]);
        }
    }
}

#[test]
fn average_is_used_for_prediction_and_checkpoints() {
    let spec = spec(NormKind::Batch);
    let mut config = config();
    config.run.ema_decay = Some(0.5);
    let (model, before, _) = train(&spec, &config, &[batch(&[1, 2])], 3);
    let average = model.average.as_ref().unwrap().parameters.to_tensors();
    let last = model.parameters.to_tensors();
    let checkpoint = model.checkpoint(Provenance::default()).unwrap();
    assert!(checkpoint.tensors == average);
    assert!(average != last && average != before);

    config.run.ema_decay = None;
    let (unaveraged, _, _) = train(&spec, &config, &[batch(&[1, 2])], 3);
    assert!(unaveraged.parameters.to_tensors() == last, "averaging does not change training");
    let scores = |model: &TrainingModel| model.predictor.predict(&batch(&[5]))[0].shallow_clone();
    assert!(scores(&model).ne_tensor(&scores(&unaveraged)).any().int64_value(&[]) == 1);
    assert!(unaveraged.checkpoint(Provenance::default()).unwrap().tensors == last);
}

#[test]
fn pretrained_weights_of_other_classes_are_loaded() {
    let (theirs, mut ours) = (spec(NormKind::Batch), spec(NormKind::Batch));
    ours.classes = [(7, "b"), (9, "new")].map(|(id, name)| Class { id, name: name.to_owned() }).to_vec();
    let (trained, _, _) = train(&theirs, &config(), &[batch(&[1, 2])], 2);
    let checkpoint = trained.checkpoint(Provenance::default()).unwrap();
    let mut config = config();
    (config.run.freeze, config.run.channels_last) = (Some(Part::Stage4), true);
    let (model, lines) = TrainingModel::from_pretrained(
        &ours,
        &config,
        tch::Device::Cpu,
        &Pretrained::Detector(Box::new(checkpoint.clone())),
    )
    .unwrap();
    let tensors = model.parameters.to_tensors();
    let name = "layer3.0.conv1.weight";
    assert_eq!(tensors[name], checkpoint.tensors[name]);
    let row = |tensors: &Tensors, row| {
        tensors["classificationModel.output.weight"].index_axis(ndarray::Axis(0), row).to_owned()
    };
    assert_eq!(row(&tensors, 2), row(&checkpoint.tensors, 3), "class b at the second anchor");
    assert!(lines.iter().any(|line| line.contains("for the classes b: classificationModel.output")), "{lines:?}");
}
