//! The loss. <https://arxiv.org/abs/1708.02002>, sections 3 and 4; details as in yhenon/pytorch-retinanet, `losses.py`.
//!
//! The focal loss is computed from logits. It needs no clamp on the probability, which would zero the gradient of the
//! worst predictions.

use models::spec::BoxCoderSpec;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::box_loss::BoxLoss;
use crate::targets::{Normalizer, TargetTensors};

/// Hyperparameters of the loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LossConfig {
    /// Focal loss: weight of foreground scores; background scores have the weight 1 - alpha.
    pub alpha: f64,
    /// Focal loss: exponent of the distance between score and target, which reduces the loss of easy examples.
    pub gamma: f64,
    /// Kind of box loss.
    pub box_loss: BoxLoss,
    /// Offset error at which the smooth L1 loss turns from quadratic to linear.
    pub smooth_l1_beta: f64,
    /// Factor on the box loss, which is a mean over the four offsets; for the loss of implementations that sum, use 4.
    pub box_loss_weight: f64,
    /// Divisor of the losses of an image's anchors.
    pub normalizer: Normalizer,
}

impl Default for LossConfig {
    fn default() -> Self {
        Self {
            alpha: 0.25,
            gamma: 2.0,
            box_loss: BoxLoss::SmoothL1,
            smooth_l1_beta: 1.0 / 9.0,
            box_loss_weight: 1.0,
            normalizer: Normalizer::Image,
        }
    }
}

/// The two parts of the loss, each a scalar: the mean over the images of the batch.
pub struct Loss {
    /// Focal loss of all scores, divided by the [`Normalizer`]. Its gradient is in [`Loss::total`].
    pub classification_loss: Tensor,
    /// Box loss of the foreground anchors, divided by the [`Normalizer`]; zero if there are none.
    pub box_loss: Tensor,
    /// Has the gradient of the classification loss, but not its value.
    classification: Tensor,
}

impl Loss {
    /// The loss of predictions.
    ///
    /// `logits` is `[N, anchors, classes]`, `offsets` is `[N, anchors, 4]`, both float32 and on the device of `targets`.
    pub fn new(
        logits: &Tensor,
        offsets: &Tensor,
        targets: &TargetTensors,
        config: &LossConfig,
        coder: &BoxCoderSpec,
    ) -> Self {
        let TargetTensors { rows, classes, object_weights, anchor_weights, .. } = targets;
        let (classification_loss, gradient) = tch::no_grad(|| {
            let gradient = logits.requires_grad().then(|| logits.empty_like().contiguous().flatten(0, 1));
            let logits = logits.detach().flatten(0, 1);
            let anchor_weights = anchor_weights.unsqueeze(1);
            // Nearly all scores are background: treats all as background, then corrects the few foreground scores.
            let background =
                background(&logits, &(anchor_weights * (1.0 - config.alpha)), config.gamma, gradient.as_ref());
            let indices = rows * logits.size()[1] + classes;
            let foreground_logits = logits.reshape(-1).index_select(0, &indices);
            let positive = Focal::new(&-&foreground_logits, config.gamma);
            let negative = Focal::new(&foreground_logits, config.gamma);
            let correct = |positive: Tensor, negative: Tensor| {
                (positive * config.alpha - negative * (1.0 - config.alpha)) * object_weights
            };
            if let Some(gradient) = &gradient {
                let correction = correct(-positive.slope(), negative.slope());
                let _ = gradient.view(-1).index_add_(0, &indices, &correction);
            }
            (background + correct(positive.loss(), negative.loss()).sum(Kind::Float), gradient)
        });

        let foreground_offsets = offsets.reshape([-1, 4]).index_select(0, rows);
        let errors = config.box_loss.per_anchor(&foreground_offsets, targets, config.smooth_l1_beta, coder);
        let box_loss = (errors * object_weights).sum(Kind::Float) * config.box_loss_weight;
        let classification = match gradient {
            // CUDA's dot product takes no more.
            Some(gradient) if gradient.numel() > i32::MAX as usize => {
                (logits.flatten(0, 1) * gradient).sum(Kind::Float)
            }
            Some(gradient) => logits.reshape(-1).dot(&gradient.view(-1)),
            None => classification_loss.shallow_clone(),
        };
        Self { classification_loss, box_loss, classification }
    }

    /// A scalar whose gradient is that of the sum of both parts; its value means nothing.
    pub fn total(&self) -> Tensor {
        &self.classification + &self.box_loss
    }

    /// Both parts as numbers: classification loss, box loss.
    pub fn values(&self) -> [f64; 2] {
        let parts = self.parts().to_device(Device::Cpu);
        [0, 1].map(|index| parts.double_value(&[index]))
    }

    /// Both parts in one tensor without gradients, `[2]`, float64: classification loss, box loss.
    pub fn parts(&self) -> Tensor {
        Tensor::stack(&[&self.classification_loss, &self.box_loss], 0).detach().to_kind(Kind::Double)
    }
}

/// Scores whose loss is computed together: on the CPU so many that the passes over them stay in its caches, on a GPU so many
/// that what is computed on the way needs little memory.
fn chunk(device: Device) -> i64 {
    if device == Device::Cpu { 1 << 17 } else { 1 << 26 }
}

/// The sum of the focal losses of `logits`, `[rows, classes]`, all as background, with `weights`, `[rows, 1]`. Writes its
/// gradient to `gradient`, `[rows, classes]`, if there is one.
fn background(logits: &Tensor, weights: &Tensor, gamma: f64, gradient: Option<&Tensor>) -> Tensor {
    let [rows, classes] = [logits.size()[0], logits.size()[1]];
    let chunk = (chunk(logits.device()) / classes).max(1);
    let mut sum = Tensor::zeros([], (Kind::Float, logits.device()));
    let mut start = 0;
    while start < rows {
        let length = chunk.min(rows - start);
        let part = |tensor: &Tensor| tensor.narrow(0, start, length);
        let focal = Focal::new(&part(logits), gamma);
        let weights = part(weights);
        sum += (focal.loss() * &weights).sum(Kind::Float);
        if let Some(gradient) = gradient {
            let _ = focal.slope().mul_out(&part(gradient), &weights);
        }
        start += length;
    }
    sum
}

/// The focal losses of background scores, without alpha: p^gamma * softplus(x) with p = sigmoid(x) for a logit x; and
/// their derivatives by x. The loss of a foreground score is that of its negative logit.
///
/// In closed form, autograd keeps none of these values for the backward pass.
struct Focal {
    p: Tensor,
    softplus: Tensor,
    /// p^gamma
    modulation: Tensor,
    gamma: f64,
}

impl Focal {
    fn new(logits: &Tensor, gamma: f64) -> Self {
        let p = logits.sigmoid();
        // A power of p would be NaN where p underflows to 0 and gamma is below 1.
        let modulation = if gamma == 2.0 { p.square() } else { (logits.log_sigmoid() * gamma).exp() };
        Self { p, softplus: logits.softplus(), modulation, gamma }
    }

    fn loss(&self) -> Tensor {
        &self.modulation * &self.softplus
    }

    /// p^gamma * (gamma * (1 - p) * softplus(x) + p)
    fn slope(&self) -> Tensor {
        let mut slope = &self.p * -self.gamma;
        let _ = slope.g_add_scalar_(self.gamma);
        let _ = slope.g_mul_(&self.softplus);
        let _ = slope.g_add_(&self.p);
        let _ = slope.g_mul_(&self.modulation);
        slope
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::Targets;
    use std::fs;

    /// libtorch's softplus is linear from 20 on, and so its derivative 1, which differs from a sigmoid by 2e-9 there.
    const SLOPE_TOLERANCE: f64 = 1e-8;

    /// `numeric_cases.json` of the shared test data; none without it.
    fn numeric_cases() -> Option<serde_json::Value> {
        let Ok(data) = std::env::var("RETINANET_DATA") else {
            eprintln!("skipped: RETINANET_DATA is not set");
            return None;
        };
        let text = fs::read_to_string(format!("{data}/numbers/numeric_cases.json")).unwrap();
        Some(serde_json::from_str(&text).unwrap())
    }

    fn numbers(value: &serde_json::Value) -> Vec<f64> {
        value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
    }

    #[test]
    fn focal_loss_matches_fvcore() {
        let Some(cases) = numeric_cases() else { return };
        for case in cases["focal"].as_array().unwrap() {
            let (gamma, alpha) = (case["gamma"].as_f64().unwrap(), case["alpha"].as_f64().unwrap());
            // fvcore: a negative alpha means no weights.
            let weight = |target: f64| match target {
                _ if alpha < 0.0 => 1.0,
                1.0 => alpha,
                _ => 1.0 - alpha,
            };
            let scores = numbers(&case["probs"]).into_iter().zip(numbers(&case["targets"]));
            for ((score, target), expected) in scores.zip(numbers(&case["per_element"])) {
                let logit = Tensor::from_slice(&[(score / (1.0 - score)).ln()]);
                let loss = Focal::new(&if target == 1.0 { -logit } else { logit }, gamma).loss();
                let found = loss.double_value(&[0]) * weight(target);
                assert!((found - expected).abs() < 1e-7, "{found} instead of {expected}");
            }
        }
    }

    #[test]
    fn focal_slope_is_autograds() {
        let logits = (Tensor::arange(4001, tch::kind::DOUBLE_CPU) - 2000.0) / 20.0;
        for gamma in [0.0, 0.5, 1.0, 2.0, 3.0] {
            let x = logits.copy().set_requires_grad(true);
            let loss = (x.log_sigmoid() * gamma).exp() * x.softplus();
            let expected = Tensor::run_backward(&[loss.sum(Kind::Double)], &[&x], false, false).remove(0);
            let focal = Focal::new(&logits, gamma);
            let [found_loss, found] = [focal.loss(), focal.slope()];
            let difference = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
            let differences = [difference(&found_loss, &loss), difference(&found, &expected)];
            assert!(
                differences.iter().all(|difference| *difference < SLOPE_TOLERANCE),
                "gamma {gamma}: {differences:?}"
            );
        }
    }

    #[test]
    fn box_loss_is_a_quarter_of_keras_retinanets() {
        let Some(cases) = numeric_cases() else { return };
        let case = &cases["kr_smooth_l1"];
        let rows = |name: &str| -> Vec<[f32; 4]> {
            let row = |row: &serde_json::Value| numbers(row).into_iter().map(|n| n as f32).collect::<Vec<_>>();
            case[name].as_array().unwrap().iter().map(|r| row(r).try_into().unwrap()).collect()
        };
        let foreground: Vec<usize> =
            (0..).zip(numbers(&case["anchor_state"])).filter(|(_, s)| *s == 1.0).map(|(i, _)| i).collect();
        let weight = 1.0 / foreground.len() as f32;
        let targets = Targets {
            rows: foreground.iter().map(|row| *row as i64).collect(),
            classes: vec![0; foreground.len()],
            anchors: vec![[0.0; 4]; foreground.len()],
            offsets: foreground.iter().map(|row| rows("target")[*row]).collect(),
            object_weights: vec![weight; foreground.len()],
            anchor_weights: vec![weight; 4],
        };
        let offsets = Tensor::from_slice(rows("pred").as_flattened()).view([1, 4, 4]);
        let config = LossConfig { smooth_l1_beta: case["beta"].as_f64().unwrap(), ..LossConfig::default() };
        let loss = Loss::new(
            &Tensor::zeros([1, 4, 1], tch::kind::FLOAT_CPU),
            &offsets,
            &targets.tensors(),
            &config,
            &BoxCoderSpec::default(),
        );
        let expected = case["expected"].as_f64().unwrap() / 4.0;
        assert!((loss.values()[1] - expected).abs() < 1e-6, "{} instead of {expected}", loss.values()[1]);
    }
}
