//! The loss. <https://arxiv.org/abs/1708.02002>, sections 3 and 4; details as in yhenon/pytorch-retinanet, `losses.py`.
//!
//! The focal loss is computed from logits. It needs no clamp on the probability, which would zero the gradient of the
//! worst predictions.

use models::spec::BoxCoderSpec;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::box_loss::BoxLoss;
use crate::targets::{Normalizer, Targets};

/// Hyperparameters of the loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// Focal loss of all scores, divided by the [`Normalizer`].
    pub classification_loss: Tensor,
    /// Box loss of the foreground anchors, divided by the [`Normalizer`]; zero if there are none.
    pub box_loss: Tensor,
}

impl Loss {
    /// The loss of predictions.
    ///
    /// `logits` is `[N, anchors, classes]`, `offsets` is `[N, anchors, 4]`, both float32.
    pub fn new(
        logits: &Tensor,
        offsets: &Tensor,
        targets: &Targets,
        config: &LossConfig,
        coder: &BoxCoderSpec,
    ) -> Self {
        let device = logits.device();
        let classes = logits.size()[2];
        let anchor_weights = Tensor::from_slice(&targets.anchor_weights).to_device(device);
        let object_weights = Tensor::from_slice(&targets.object_weights).to_device(device);
        let rows = Tensor::from_slice(&targets.rows).to_device(device);

        // Nearly all scores are background: treats all as background, then corrects the few foreground scores.
        let background = focal(logits, config.gamma) * anchor_weights.view([logits.size()[0], -1, 1]);
        let foreground_indices = &rows * classes + Tensor::from_slice(&targets.classes).to_device(device);
        let foreground_logits = logits.reshape(-1).index_select(0, &foreground_indices);
        let foreground = focal(&-&foreground_logits, config.gamma) * config.alpha;
        let as_background = focal(&foreground_logits, config.gamma) * (1.0 - config.alpha);
        let classification_loss = background.sum(Kind::Float) * (1.0 - config.alpha)
            + ((foreground - as_background) * &object_weights).sum(Kind::Float);

        let foreground_offsets = offsets.reshape([-1, 4]).index_select(0, &rows);
        let errors = config.box_loss.per_anchor(&foreground_offsets, targets, config.smooth_l1_beta, coder);
        let box_loss = (errors * &object_weights).sum(Kind::Float) * config.box_loss_weight;
        Self { classification_loss, box_loss }
    }

    /// The sum of both parts.
    pub fn total(&self) -> Tensor {
        &self.classification_loss + &self.box_loss
    }

    /// Both parts as numbers: classification loss, box loss.
    pub fn values(&self) -> [f64; 2] {
        let values = Tensor::stack(&[&self.classification_loss, &self.box_loss], 0).detach().to_device(Device::Cpu);
        [values.double_value(&[0]), values.double_value(&[1])]
    }
}

/// The focal loss of background scores, without alpha: p^gamma * -log(1 - p) with p = sigmoid(logit).
/// The loss of a foreground score is that of its negative logit.
fn focal(logits: &Tensor, gamma: f64) -> Tensor {
    // For other exponents than 2, the gradient of a power of p would be infinite where p underflows to 0.
    let modulation = if gamma == 2.0 { logits.sigmoid().square() } else { (logits.log_sigmoid() * gamma).exp() };
    modulation * logits.softplus()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

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
                let loss = focal(&if target == 1.0 { -logit } else { logit }, gamma) * weight(target);
                let found = loss.double_value(&[0]);
                assert!((found - expected).abs() < 1e-7, "{found} instead of {expected}");
            }
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
            &targets,
            &config,
            &BoxCoderSpec::default(),
        );
        let expected = case["expected"].as_f64().unwrap() / 4.0;
        assert!((loss.values()[1] - expected).abs() < 1e-6, "{} instead of {expected}", loss.values()[1]);
    }
}
