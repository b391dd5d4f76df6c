//! Compares the loss and its gradient with a direct implementation of the formulas in float64.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use models::spec::{AnchorSpec, BoxCoderSpec};
use models::{Anchors, BoundingBox, Matcher};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};
use trainer::box_loss::BoxLoss;
use trainer::loss::{Loss, LossConfig};
use trainer::targets::{Normalizer, Object, Targets};

const SIDE: usize = 128;
const CLASSES: usize = 3;

/// Maximum relative difference of a loss: float32, summed over some thousand scores.
const LOSS_TOLERANCE: f64 = 1e-5;

/// Maximum absolute difference of an element of the gradient; the elements are below 1.
const GRADIENT_TOLERANCE: f64 = 1e-6;

fn object(class_index: usize, corners: [f32; 4]) -> Object {
    Object { class_index, bounding_box: BoundingBox::from(corners) }
}

/// The targets under test.
fn targets(images: &[Vec<Object>], normalizer: Normalizer) -> Targets {
    let anchors = Anchors::new(&AnchorSpec::default(), SIDE, SIDE);
    Targets::new(images, &anchors, &Matcher::default(), &BoxCoderSpec::default(), normalizer)
}

fn loss(logits: &Tensor, offsets: &Tensor, targets: &Targets, config: &LossConfig) -> Loss {
    Loss::new(logits, offsets, &targets.tensors(), config, &BoxCoderSpec::default())
}

fn iou(a: &[f64; 4], b: &[f64; 4]) -> f64 {
    let side = |low: usize| (a[low + 2].min(b[low + 2]) - a[low].max(b[low])).max(0.0);
    let area = |c: &[f64; 4]| (c[2] - c[0]) * (c[3] - c[1]);
    let intersection = side(0) * side(1);
    intersection / (area(a) + area(b) - intersection).max(1e-8)
}

/// The expected target of an anchor.
enum Target {
    Ignored,
    Background,
    Object { class: usize, offsets: [f64; 4] },
}

/// The expected targets of the anchors of one image.
fn expected_targets(anchors: &[[f64; 4]], objects: &[Object]) -> Vec<Target> {
    let boxes: Vec<_> = objects.iter().map(|object| <[f32; 4]>::from(object.bounding_box).map(f64::from)).collect();
    let of_anchor = |anchor: &[f64; 4]| {
        let mut best: Option<(f64, usize)> = None;
        for (index, corners) in boxes.iter().enumerate() {
            let iou = iou(anchor, corners);
            if best.is_none_or(|(max_iou, _)| iou > max_iou) {
                best = Some((iou, index));
            }
        }
        let (iou, index) = best.unwrap_or((0.0, 0));
        if iou < 0.4 {
            return Target::Background;
        }
        if iou < 0.5 {
            return Target::Ignored;
        }
        let [x1, y1, x2, y2] = boxes[index];
        let [aw, ah] = [anchor[2] - anchor[0], anchor[3] - anchor[1]];
        let [ax, ay] = [anchor[0] + 0.5 * aw, anchor[1] + 0.5 * ah];
        let [gx, gy] = [x1 + 0.5 * (x2 - x1), y1 + 0.5 * (y2 - y1)];
        let [gw, gh] = [(x2 - x1).max(1.0), (y2 - y1).max(1.0)];
        let offsets = [(gx - ax) / aw / 0.1, (gy - ay) / ah / 0.1, (gw / aw).ln() / 0.2, (gh / ah).ln() / 0.2];
        Target::Object { class: objects[index].class_index, offsets }
    };
    anchors.iter().map(of_anchor).collect()
}

fn focal(logit: f64, foreground: bool) -> f64 {
    let p = 1.0 / (1.0 + (-logit).exp());
    if foreground { 0.25 * (1.0 - p).powi(2) * -p.ln() } else { 0.75 * p.powi(2) * -(1.0 - p).ln() }
}

fn smooth_l1(error: f64) -> f64 {
    let d = error.abs();
    if d <= 1.0 / 9.0 { 4.5 * d * d } else { d - 1.0 / 18.0 }
}

/// The numerical derivative of `f` at `x`. Every element of a prediction contributes one term to the loss.
fn slope(f: impl Fn(f64) -> f64, x: f64) -> f64 {
    let step = 1e-5;
    (f(x + step) - f(x - step)) / (2.0 * step)
}

/// The two losses of predictions, and their derivatives by every logit and every offset.
struct Expected {
    losses: [f64; 2],
    logit_slopes: Vec<f64>,
    offset_slopes: Vec<f64>,
}

/// The expected loss of a batch. `foreground` is the number of foreground anchors of each image.
fn expected_loss(
    images: &[Vec<Target>],
    foreground: &[usize],
    [logits, offsets]: [&[f32]; 2],
    config: &LossConfig,
) -> Expected {
    let mut expected = Expected { losses: [0.0; 2], logit_slopes: Vec::new(), offset_slopes: Vec::new() };
    let box_term = if config.box_loss == BoxLoss::L1 { f64::abs } else { smooth_l1 };
    let mut rows = logits.chunks(CLASSES).zip(offsets.chunks(4));
    for (image, targets) in images.iter().enumerate() {
        let per_score = match config.normalizer {
            Normalizer::Image => 1.0 / (foreground[image].max(1) * images.len()) as f64,
            Normalizer::Batch => 1.0 / foreground.iter().sum::<usize>().max(1) as f64,
        };
        let per_offset = config.box_loss_weight * per_score / 4.0;
        for (target, (logits, offsets)) in targets.iter().zip(&mut rows) {
            for (class, logit) in logits.iter().enumerate() {
                if let Target::Ignored = target {
                    expected.logit_slopes.push(0.0);
                    continue;
                }
                let foreground = matches!(target, Target::Object { class: object_class, .. } if *object_class == class);
                let term = |x| focal(x, foreground) * per_score;
                expected.losses[0] += term(f64::from(*logit));
                expected.logit_slopes.push(slope(term, f64::from(*logit)));
            }
            for (coordinate, offset) in offsets.iter().enumerate() {
                let Target::Object { offsets: target_offsets, .. } = target else {
                    expected.offset_slopes.push(0.0);
                    continue;
                };
                let term = |x| box_term(x - target_offsets[coordinate]) * per_offset;
                expected.losses[1] += term(f64::from(*offset));
                expected.offset_slopes.push(slope(term, f64::from(*offset)));
            }
        }
    }
    expected
}

/// Checks loss and gradient for a batch, and returns the number of foreground anchors of each image.
fn check(images: &[Vec<Object>]) -> Vec<usize> {
    check_with(images, &LossConfig::default())
}

fn check_with(images: &[Vec<Object>], config: &LossConfig) -> Vec<usize> {
    let anchors = Anchors::new(&AnchorSpec::default(), SIDE, SIDE);
    let anchor_boxes: Vec<_> = anchors.boxes().iter().map(|anchor| <[f32; 4]>::from(*anchor).map(f64::from)).collect();
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let mut values = |width: usize| -> Vec<f32> {
        (0..images.len() * anchor_boxes.len() * width).map(|_| random.random_range(-6.0..6.0)).collect()
    };
    let (logit_values, offset_values) = (values(CLASSES), values(4));
    let expected_targets: Vec<_> = images.iter().map(|objects| expected_targets(&anchor_boxes, objects)).collect();
    let is_object = |target: &&Target| matches!(target, Target::Object { .. });
    let foreground: Vec<_> = expected_targets.iter().map(|targets| targets.iter().filter(is_object).count()).collect();
    let expected = expected_loss(&expected_targets, &foreground, [&logit_values, &offset_values], config);

    let shape = |width: usize| [images.len() as i64, anchor_boxes.len() as i64, width as i64];
    let leaf = |values: &[f32], width| Tensor::from_slice(values).view(shape(width)).set_requires_grad(true);
    let (logits, offsets) = (leaf(&logit_values, CLASSES), leaf(&offset_values, 4));
    let loss = loss(&logits, &offsets, &targets(images, config.normalizer), config);
    for (found, expected) in loss.values().into_iter().zip(expected.losses) {
        assert!((found - expected).abs() <= LOSS_TOLERANCE * expected.max(1.0), "{found} instead of {expected}");
    }
    let gradients = Tensor::run_backward(&[loss.total()], &[&logits, &offsets], false, false);
    for (gradient, expected) in gradients.iter().zip([expected.logit_slopes, expected.offset_slopes]) {
        let difference = gradient.to_kind(Kind::Double).view(-1) - Tensor::from_slice(&expected);
        let max = difference.abs().max().double_value(&[]);
        assert!(max <= GRADIENT_TOLERANCE, "the gradient differs by {max}");
    }
    foreground
}

fn several() -> Vec<Object> {
    vec![object(0, [8.0, 10.0, 60.0, 50.0]), object(2, [70.0, 64.0, 120.0, 126.0]), object(1, [0.0, 0.0, 127.0, 120.0])]
}

fn too_small() -> Vec<Object> {
    vec![object(1, [40.0, 40.0, 46.0, 47.0])]
}

fn overlapping() -> Vec<Object> {
    vec![object(1, [20.0, 20.0, 70.0, 70.0]), object(1, [26.0, 24.0, 76.0, 74.0]), object(1, [20.0, 20.0, 70.0, 70.0])]
}

#[test]
fn loss_matches_the_formulas_for_several_boxes() {
    assert!(check(&[several()])[0] > 3);
}

#[test]
fn loss_matches_the_formulas_without_boxes() {
    assert_eq!(check(&[vec![]]), [0]);
}

#[test]
fn loss_matches_the_formulas_for_a_box_without_anchors() {
    assert_eq!(check(&[too_small()]), [0]);
}

#[test]
fn loss_matches_the_formulas_for_overlapping_boxes_of_one_class() {
    assert!(check(&[overlapping()])[0] > 3);
}

#[test]
fn loss_matches_the_formulas_for_a_batch() {
    let counts = check(&[several(), vec![], too_small(), overlapping()]);
    assert!(counts[0] > 0 && counts[1] == 0 && counts[2] == 0 && counts[3] > 0);
}

#[test]
fn loss_matches_the_formulas_for_other_losses_and_normalizers() {
    let images = [several(), vec![], overlapping()];
    for normalizer in [Normalizer::Image, Normalizer::Batch] {
        for (box_loss, box_loss_weight) in [(BoxLoss::SmoothL1, 1.0), (BoxLoss::L1, 4.0)] {
            check_with(&images, &LossConfig { box_loss, box_loss_weight, normalizer, ..LossConfig::default() });
        }
    }
    check_with(&[vec![], too_small()], &LossConfig { normalizer: Normalizer::Batch, ..LossConfig::default() });
}

#[test]
fn extreme_logits_have_a_finite_loss_and_gradient() {
    let anchors = Anchors::new(&AnchorSpec::default(), SIDE, SIDE);
    let rows = anchors.boxes().len() as i64;
    let targets = targets(&[several()], Normalizer::Image);
    let gammas = [0.0, 0.5, 1.0, 2.0];
    for (logit, gamma) in [-1e4, -200.0, -104.0, -88.0, 0.0, 88.0, 104.0, 200.0, 1e4]
        .into_iter()
        .flat_map(|logit| gammas.map(|gamma| (logit, gamma)))
    {
        let logits = Tensor::full([1, rows, CLASSES as i64], logit, tch::kind::FLOAT_CPU).set_requires_grad(true);
        let offsets = Tensor::zeros([1, rows, 4], tch::kind::FLOAT_CPU).set_requires_grad(true);
        let loss = loss(&logits, &offsets, &targets, &LossConfig { gamma, ..LossConfig::default() });
        assert!(loss.values().iter().all(|value| value.is_finite()), "{logit}, gamma {gamma}");
        let gradients = Tensor::run_backward(&[loss.total()], &[&logits, &offsets], false, false);
        let finite = gradients.iter().all(|gradient| gradient.isfinite().all().int64_value(&[]) == 1);
        assert!(finite, "{logit}, gamma {gamma}");
    }
}
