//! The feature pyramid (FPN). <https://arxiv.org/abs/1612.03144>; levels P6 and P7 as in
//! <https://arxiv.org/abs/1708.02002>, section 4.

use crate::layers::{Conv2d, Conv2dConfig, ConvInitial};
use crate::resnet::Features;
use crate::spec::{P6From, PyramidSpec};
use crate::tensor::Tensor;
use crate::weights::{Scope, WeightsError};

/// Computes P3 to P7 from C3 to C5.
pub(crate) struct Pyramid<T> {
    p5_1: Conv2d<T>,
    p5_2: Conv2d<T>,
    p4_1: Conv2d<T>,
    p4_2: Conv2d<T>,
    p3_1: Conv2d<T>,
    p3_2: Conv2d<T>,
    p6: Conv2d<T>,
    p7_2: Conv2d<T>,
    p6_from: P6From,
    p7_relu: bool,
}

impl<T: Tensor> Pyramid<T> {
    /// `c3`, `c4` and `c5` are the channels of these feature maps.
    pub(crate) fn new(scope: &Scope<T>, spec: &PyramidSpec, [c3, c4, c5]: [usize; 3]) -> Result<Self, WeightsError> {
        let width = spec.width;
        let conv = |name: &str, config| Conv2d::with_bias(&scope.at(name), config, ConvInitial::FanOut);
        let lateral = |name: &str, inputs| conv(name, Conv2dConfig::same(inputs, width, 1));
        let smooth = |name: &str| conv(name, Conv2dConfig::same(width, width, 3));
        let coarser = |name: &str, inputs| conv(name, Conv2dConfig::same(inputs, width, 3).stride(2));
        let p6_inputs = match spec.p6_from {
            P6From::C5 => c5,
            P6From::P5 => width,
        };
        Ok(Self {
            p5_1: lateral("P5_1", c5)?,
            p5_2: smooth("P5_2")?,
            p4_1: lateral("P4_1", c4)?,
            p4_2: smooth("P4_2")?,
            p3_1: lateral("P3_1", c3)?,
            p3_2: smooth("P3_2")?,
            p6: coarser("P6", p6_inputs)?,
            p7_2: coarser("P7_2", width)?,
            p6_from: spec.p6_from,
            p7_relu: spec.p7_relu,
        })
    }

    /// P3 to P7, each `[N, width, H / 2^level, W / 2^level]`, rounded up.
    pub(crate) fn forward(&self, features: &Features<T>) -> [T; 5] {
        let top5 = features.c5.apply(&self.p5_1);
        let top4 = features.c4.apply(&self.p4_1).add(&top5.upsample2x());
        let top3 = features.c3.apply(&self.p3_1).add(&top4.upsample2x());
        let p3 = top3.apply(&self.p3_2);
        let p4 = top4.apply(&self.p4_2);
        let p5 = top5.apply(&self.p5_2);
        let p6 = match self.p6_from {
            P6From::C5 => features.c5.apply(&self.p6),
            P6From::P5 => p5.apply(&self.p6),
        };
        let p7 = if self.p7_relu { p6.relu() } else { p6.clone() }.apply(&self.p7_2);
        [p3, p4, p5, p6, p7]
    }
}
