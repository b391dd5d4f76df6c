//! The box regression loss of each foreground anchor.

use models::spec::BoxCoderSpec;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Reduction, Tensor};

use crate::targets::TargetTensors;

/// Added to divisors, so that GIoU stays finite; in square pixels.
const EPSILON: f64 = 1e-7;

/// Maximum of the log-scale width and height offsets if the box coder sets none: ln(1000 / 16), as in Detectron2.
/// Without it, an extreme prediction has an infinite area and no gradient.
const MAX_LOG_SIDE: f64 = 4.135_166_556_742_356;

/// Kinds of box regression loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BoxLoss {
    /// On offsets: quadratic below `beta`, linear above. <https://arxiv.org/abs/1504.08083>
    SmoothL1,
    /// On offsets: absolute error.
    L1,
    /// On boxes: one minus the generalized IoU. <https://arxiv.org/abs/1902.09630>
    Giou,
}

impl BoxLoss {
    /// The loss of each foreground anchor, `[foreground]`, for its predicted `offsets`, `[foreground, 4]`. L1 and
    /// smooth L1 are means over the four offsets.
    pub(crate) fn per_anchor(
        self,
        offsets: &Tensor,
        targets: &TargetTensors,
        beta: f64,
        coder: &BoxCoderSpec,
    ) -> Tensor {
        let TargetTensors { anchors, offsets: truth, .. } = targets;
        let mean = |errors: Tensor| errors.mean_dim([1i64].as_slice(), false, Kind::Float);
        match self {
            Self::SmoothL1 => mean(offsets.smooth_l1_loss(truth, Reduction::None, beta)),
            Self::L1 => mean(offsets.l1_loss(truth, Reduction::None)),
            Self::Giou => 1.0 - giou(&decode(anchors, offsets, coder), &decode(anchors, truth, coder)),
        }
    }
}

/// Decodes `offsets` `[n, 4]` relative to `anchors` `[n, 4]` to boxes `[n, 4]` in pixels of the padded input, like
/// [`BoxCoderSpec::decode`].
fn decode(anchors: &Tensor, offsets: &Tensor, coder: &BoxCoderSpec) -> Tensor {
    // Filled on the device, because a copy would wait for it.
    let std =
        Tensor::stack(&coder.std.map(|std| Tensor::full([], f64::from(std), (offsets.kind(), offsets.device()))), 0);
    let sides = anchors.narrow(1, 2, 2) - anchors.narrow(1, 0, 2);
    let centers = anchors.narrow(1, 0, 2) + &sides * 0.5;
    let offsets = offsets * std;
    let centers = centers + offsets.narrow(1, 0, 2) * &sides;
    let limit = coder.clamp.map_or(MAX_LOG_SIDE, f64::from);
    let half = offsets.narrow(1, 2, 2).clamp_max(limit).exp() * sides * 0.5;
    Tensor::cat(&[&centers - &half, centers + half], 1)
}

/// Generalized IoU of pairs of boxes `[n, 4]`, in [-1, 1].
fn giou(a: &Tensor, b: &Tensor) -> Tensor {
    let area = |near: &Tensor, far: &Tensor| {
        let sides = (far - near).clamp_min(0.0);
        sides.select(1, 0) * sides.select(1, 1)
    };
    let [a_near, a_far, b_near, b_far] = [a.narrow(1, 0, 2), a.narrow(1, 2, 2), b.narrow(1, 0, 2), b.narrow(1, 2, 2)];
    let intersection = area(&a_near.maximum(&b_near), &a_far.minimum(&b_far));
    let union = area(&a_near, &a_far) + area(&b_near, &b_far) - &intersection;
    let hull = area(&a_near.minimum(&b_near), &a_far.maximum(&b_far));
    intersection / (&union + EPSILON) - (&hull - union) / (&hull + EPSILON)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::Targets;
    use models::BoundingBox;

    /// Rounding error of float32 for coordinates up to a few hundred.
    const TOLERANCE: f64 = 1e-4;

    fn row(corners: [f32; 4]) -> Tensor {
        Tensor::from_slice(&corners).view([1, 4])
    }

    // torchvision, test/test_ops.py, TestGeneralizedBoxIouLoss: 1 - GIoU
    /// Targets of one foreground anchor.
    fn targets(anchor: [f32; 4], offsets: [f32; 4]) -> TargetTensors {
        let (rows, classes, weights) = (vec![0], vec![0], vec![1.0]);
        let (anchors, offsets) = (vec![anchor], vec![offsets]);
        Targets { rows, classes, anchors, offsets, object_weights: weights.clone(), anchor_weights: weights }.tensors()
    }

    #[test]
    fn giou_matches_torchvision() {
        let cases = [
            ([-1., -1., 1., 1.], [-1., -1., 1., 1.], 0.0),
            ([-1., -1., 1., 1.], [0., 0., 1., 1.], 0.75),
            ([0., 0., 1., 1.], [0., 1., 1., 2.], 1.0),
            ([0., 0., 1., 1.], [1., 1., 2., 2.], 1.5),
        ];
        for (a, b, loss) in cases {
            let found = 1.0 - giou(&row(a), &row(b)).double_value(&[0]);
            assert!((found - loss).abs() < TOLERANCE, "{a:?}, {b:?}: {found} instead of {loss}");
        }
    }

    #[test]
    fn decode_matches_the_box_coder() {
        let anchor = BoundingBox::new(80.0, 120.0, 200.0, 300.0);
        for coder in [BoxCoderSpec::default(), BoxCoderSpec { std: [1.0; 4], clamp: Some(0.5) }] {
            for offsets in [[0.0; 4], [1.5, -2.0, 0.7, -0.3], [0.1, 0.2, 3.0, 1.0]] {
                let expected = <[f32; 4]>::from(coder.decode(&anchor, offsets));
                let found = decode(&row(anchor.into()), &row(offsets), &coder);
                let difference = (found - row(expected)).abs().max().double_value(&[]);
                assert!(difference < TOLERANCE, "{offsets:?}: off by {difference}");
            }
        }
    }

    #[test]
    fn every_loss_is_zero_at_the_target_and_its_gradient_leads_there() {
        let coder = BoxCoderSpec::default();
        let anchor = BoundingBox::new(0.0, 0.0, 64.0, 32.0);
        let offsets = coder.encode(&anchor, &BoundingBox::new(4.0, -2.0, 60.0, 37.0));
        let targets = targets(anchor.into(), offsets);
        for kind in [BoxLoss::SmoothL1, BoxLoss::L1, BoxLoss::Giou] {
            let loss = |offsets: &Tensor| kind.per_anchor(offsets, &targets, 1.0 / 9.0, &coder).sum(Kind::Float);
            assert!(loss(&row(offsets)).double_value(&[]).abs() < TOLERANCE, "{kind:?}");
            let mut guess = row([30.0, 0.0, 0.0, 0.0]).set_requires_grad(true);
            let mut losses = Vec::new();
            for step in 0..400 {
                let loss = loss(&guess);
                losses.push(loss.double_value(&[]));
                let gradient = Tensor::run_backward(&[&loss], &[&guess], false, false).remove(0);
                let rate = 4.0 * (1.0 - f64::from(step) / 400.0);
                tch::no_grad(|| guess -= gradient.sign() * rate * 0.1);
            }
            assert!(losses[0] > 0.5 && losses[399] < 0.02, "{kind:?}: {} to {}", losses[0], losses[399]);
        }
    }

    #[test]
    fn extreme_predictions_have_a_finite_loss_and_gradient() {
        let coder = BoxCoderSpec::default();
        let targets = targets([0.0, 0.0, 32.0, 32.0], [0.0; 4]);
        let guess = row([1e4, -1e4, 1e3, -1e3]).set_requires_grad(true);
        let loss = BoxLoss::Giou.per_anchor(&guess, &targets, 0.1, &coder).sum(Kind::Float);
        let gradient = Tensor::run_backward(&[&loss], &[&guess], false, false).remove(0);
        assert!(loss.double_value(&[]).is_finite() && gradient.isfinite().all().int64_value(&[]) == 1);
    }
}
