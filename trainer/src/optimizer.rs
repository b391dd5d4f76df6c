//! Optimizers on one flat tensor.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::parameters::Segment;

/// Elements that are updated together on the CPU: with their gradients and moments they fit its caches, so that the
/// passes of an update read memory only once.
const CHUNK: i64 = 1 << 17;

/// The optimizer and its hyperparameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// The update rule.
    pub kind: OptimizerKind,
    /// Learning rate after warm-up.
    pub learning_rate: f64,
    /// Whether the learning rate is multiplied by the number of processes that train together (linear scaling rule,
    /// <https://arxiv.org/abs/1706.02677>).
    pub scale_lr: bool,
    /// Factor on the learning rate of the backbone.
    pub backbone_lr_multiplier: f64,
    /// Weight decay; not applied to norms and biases.
    pub weight_decay: f64,
    /// SGD: momentum.
    pub momentum: f64,
    /// SGD: whether to use Nesterov momentum.
    pub nesterov: bool,
    /// AdamW: decay rates of the two moments.
    pub betas: [f64; 2],
    /// Maximum gradient norm. `None`: no clipping.
    pub clip_grad_norm: Option<f64>,
    /// Batches per optimizer step. The step is the same as for one large batch, except for live batch norms.
    pub gradient_accumulation_steps: usize,
}

/// Update rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerKind {
    /// SGD with momentum; weight decay is added to the gradient, as in PyTorch.
    Sgd,
    /// Adam with decoupled weight decay. <https://arxiv.org/abs/1711.05101>
    Adamw,
}

impl OptimizerKind {
    fn moment_names(self) -> &'static [&'static str] {
        match self {
            Self::Sgd => &["momentum"],
            Self::Adamw => &["first_moment", "second_moment"],
        }
    }
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            kind: OptimizerKind::Adamw,
            learning_rate: 5e-4,
            scale_lr: false,
            backbone_lr_multiplier: 1.0,
            weight_decay: 1e-4,
            momentum: 0.9,
            nesterov: false,
            betas: [0.9, 0.999],
            clip_grad_norm: Some(10.0),
            gradient_accumulation_steps: 1,
        }
    }
}

impl OptimizerConfig {
    /// The learning rate after warm-up of a run with `world_size` processes.
    pub fn learning_rate(&self, world_size: usize) -> f64 {
        if self.scale_lr { self.learning_rate * world_size as f64 } else { self.learning_rate }
    }
}

/// An optimizer with its state.
pub struct Optimizer {
    config: OptimizerConfig,
    segments: Vec<Segment>,
    /// Number of updates so far.
    pub steps: i64,
    /// Each `[count]`, like the weights: the momentum for SGD, the two moments for AdamW.
    pub moments: Vec<Tensor>,
}

impl Optimizer {
    /// An optimizer for `weights`, `[count]`. The lengths of `segments` add up to `count`.
    pub fn new(config: &OptimizerConfig, weights: &Tensor, segments: &[Segment]) -> Self {
        let moments = config.kind.moment_names().iter().map(|_| weights.zeros_like()).collect();
        Self { config: config.clone(), segments: segments.to_vec(), steps: 0, moments }
    }

    /// Names of the moments in a saved state.
    pub fn moment_names(&self) -> &'static [&'static str] {
        self.config.kind.moment_names()
    }

    /// Updates `weights` with `gradient`, both `[count]`. `norm` is the gradient's norm before clipping, a scalar on the
    /// device, which is not waited for; if it is not finite, the weights become NaN. `gradient` is modified.
    pub fn step(&mut self, weights: &mut Tensor, gradient: &mut Tensor, norm: &Tensor, learning_rate: f64) {
        tch::no_grad(|| {
            let norm = norm.to_kind(Kind::Double);
            let clip = self.config.clip_grad_norm.map(|max| (norm.full_like(max) / &norm).clamp_max(1.0));
            let clip = clip.map(|clip| clip.to_kind(gradient.kind()));
            self.steps += 1;
            let mut start = 0;
            for &Segment { length, decays, backbone } in &self.segments {
                let rate = if backbone { learning_rate * self.config.backbone_lr_multiplier } else { learning_rate };
                let decay = if decays { self.config.weight_decay } else { 0.0 };
                let end = start + length;
                while start < end {
                    let length = if weights.device() == Device::Cpu { CHUNK.min(end - start) } else { end - start };
                    let part = |tensor: &Tensor| tensor.narrow(0, start, length);
                    let moments: Vec<_> = self.moments.iter().map(part).collect();
                    let mut gradient = part(gradient);
                    if let Some(clip) = &clip {
                        let _ = gradient.g_mul_(clip);
                    }
                    self.update(part(weights), gradient, moments, rate, decay);
                    start += length;
                }
            }
        });
    }

    fn update(&self, mut w: Tensor, mut g: Tensor, moments: Vec<Tensor>, learning_rate: f64, decay: f64) {
        let mut moments = moments.into_iter();
        let mut first = moments.next().expect("every optimizer has a first moment");
        match (self.config.kind, moments.next()) {
            (OptimizerKind::Adamw, Some(mut second)) => {
                let [beta1, beta2] = self.config.betas;
                let correction = |beta: f64| 1.0 - beta.powi(self.steps.min(1 << 20) as i32);
                let _ = first.lerp_(&g, 1.0 - beta1);
                let _ = second.lerp_(&g.square(), 1.0 - beta2);
                let mut scale = second.sqrt();
                let _ = scale.g_mul_scalar_(correction(beta2).sqrt().recip());
                let _ = scale.g_add_scalar_(1e-8);
                let mut change = &first / scale;
                let _ = change.g_mul_scalar_(learning_rate / correction(beta1));
                if decay > 0.0 {
                    let _ = w.g_mul_scalar_(1.0 - learning_rate * decay);
                }
                let _ = w.g_sub_(&change);
            }
            _ => {
                if decay > 0.0 {
                    let _ = g.g_add_(&(&w * decay));
                }
                let _ = first.g_mul_scalar_(self.config.momentum);
                let _ = first.g_add_(&g);
                let mut change = &first * learning_rate;
                if self.config.nesterov {
                    let _ = change.g_mul_scalar_(self.config.momentum);
                    let _ = change.g_add_(&(&g * learning_rate));
                }
                let _ = w.g_sub_(&change);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: [f64; 3] = [1.0, -2.0, 0.5];
    const GRADIENTS: [[f64; 3]; 3] = [[0.1, 0.2, -0.3], [0.4, -0.5, 0.6], [-0.7, 0.8, 0.9]];

    // tests/golden/optimizers.py, PyTorch 2.11.0
    const ADAMW: [f64; 3] = [0.8292223000060962, -2.0835506517474016, 0.49359193970589543];
    const NESTEROV: [f64; 3] = [0.9824222125509999, -2.069184479462, 0.26546031634050005];
    const SGD: [f64; 3] = [0.961372789, -2.027963618, 0.3744434295];

    /// Segments of `count` weights, with weight decay on the first `decayed`.
    fn segments(count: i64, decayed: i64) -> [Segment; 2] {
        let segment = |length, decays| Segment { length, decays, backbone: false };
        [segment(decayed, true), segment(count - decayed, false)]
    }

    fn train(config: &OptimizerConfig, segments: &[Segment]) -> Vec<f64> {
        let mut weights = Tensor::from_slice(&START);
        let mut optimizer = Optimizer::new(config, &weights, segments);
        for gradient in GRADIENTS {
            step(&mut optimizer, &mut weights, &Tensor::from_slice(&gradient), 0.1);
        }
        Vec::try_from(weights).unwrap()
    }

    fn step(optimizer: &mut Optimizer, weights: &mut Tensor, gradient: &Tensor, learning_rate: f64) {
        optimizer.step(weights, &mut gradient.copy(), &gradient.norm(), learning_rate);
    }

    fn assert_near(found: &[f64], expected: &[f64]) {
        let near = found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-9);
        assert!(near && found.len() == expected.len(), "{found:?} instead of {expected:?}");
    }

    #[test]
    fn updates_match_pytorch() {
        let config = OptimizerConfig { weight_decay: 0.01, clip_grad_norm: None, ..OptimizerConfig::default() };
        let all = segments(3, 3);
        assert_near(&train(&config, &all), &ADAMW);
        let config = OptimizerConfig { kind: OptimizerKind::Sgd, ..config };
        assert_near(&train(&config, &all), &SGD);
        assert_near(&train(&OptimizerConfig { nesterov: true, ..config }, &all), &NESTEROV);
    }

    #[test]
    fn weight_decay_applies_only_to_its_segments() {
        let decay = OptimizerConfig { weight_decay: 0.5, clip_grad_norm: None, ..OptimizerConfig::default() };
        let plain = OptimizerConfig { weight_decay: 0.0, ..decay.clone() };
        for kind in [OptimizerKind::Adamw, OptimizerKind::Sgd] {
            let [decay, plain] = [&decay, &plain].map(|config| OptimizerConfig { kind, ..config.clone() });
            let (with, without) = (train(&decay, &segments(3, 1)), train(&plain, &segments(3, 1)));
            assert_ne!(with[0], without[0]);
            assert_eq!(with[1..], without[1..]);
        }
    }

    #[test]
    fn backbone_learning_rate_is_multiplied() {
        let config =
            OptimizerConfig { backbone_lr_multiplier: 0.25, clip_grad_norm: None, ..OptimizerConfig::default() };
        let one = |backbone| Segment { length: 1, decays: false, backbone };
        let parts = [one(true), one(false), one(true)];
        for kind in [OptimizerKind::Adamw, OptimizerKind::Sgd] {
            let slow = train(&OptimizerConfig { kind, ..config.clone() }, &parts);
            let usual = train(&OptimizerConfig { kind, backbone_lr_multiplier: 1.0, ..config.clone() }, &parts);
            for (index, factor) in [0.25, 1.0, 0.25].into_iter().enumerate() {
                let change = |weights: &[f64]| weights[index] - START[index];
                assert!((change(&slow) - factor * change(&usual)).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn chunked_updates_equal_small_ones() {
        let count = CHUNK * 2 + 5;
        let decayed = CHUNK + 3;
        let run = |parts: &[(i64, i64)]| {
            let mut whole = Tensor::arange(count, tch::kind::FLOAT_CPU) / count;
            for (start, length) in parts {
                let mut part = whole.narrow(0, *start, *length);
                let part_decayed = (decayed - start).clamp(0, *length);
                let config = OptimizerConfig { clip_grad_norm: None, ..OptimizerConfig::default() };
                let mut optimizer = Optimizer::new(&config, &part, &segments(*length, part_decayed));
                let gradient = part.sin();
                step(&mut optimizer, &mut part, &gradient, 0.1);
            }
            whole = whole.contiguous();
            Vec::<f32>::try_from(whole).unwrap()
        };
        let parts: Vec<_> = (0..count).step_by(1000).map(|start| (start, 1000.min(count - start))).collect();
        assert_eq!(run(&[(0, count)]), run(&parts));
    }

    #[test]
    fn gradients_are_clipped_to_the_maximum_norm() {
        let config = OptimizerConfig {
            kind: OptimizerKind::Sgd,
            weight_decay: 0.0,
            clip_grad_norm: Some(1.0),
            ..OptimizerConfig::default()
        };
        for (gradient, expected) in [([30.0, 40.0], [-0.6, -0.8]), ([0.3, 0.4], [-0.3, -0.4])] {
            let mut weights = Tensor::zeros([2], tch::kind::DOUBLE_CPU);
            let mut optimizer = Optimizer::new(&config, &weights, &segments(2, 2));
            step(&mut optimizer, &mut weights, &Tensor::from_slice(&gradient), 1.0);
            assert_near(&Vec::<f64>::try_from(&weights).unwrap(), &expected);
        }
    }

    #[test]
    fn gradients_that_are_not_finite_cannot_go_unnoticed() {
        for wrong in [f64::NAN, f64::INFINITY] {
            let mut weights = Tensor::zeros([2], tch::kind::DOUBLE_CPU);
            let mut optimizer = Optimizer::new(&OptimizerConfig::default(), &weights, &segments(2, 2));
            step(&mut optimizer, &mut weights, &Tensor::from_slice(&[wrong, 0.0]), 1.0);
            assert!(!weights.double_value(&[0]).is_finite());
        }
    }
}
