//! The two heads, classification and box regression. <https://arxiv.org/abs/1708.02002>, section 4.

use crate::layers::{Conv2d, Conv2dConfig, ConvInitial, Norm, NormedConv2d};
use crate::spec::HeadsSpec;
use crate::tensor::{Layer, Tensor};
use crate::weights::{Scope, WeightsError};

/// A small convolutional network that runs on every feature level with the same weights.
pub(crate) struct Head<T> {
    tower: Vec<NormedConv2d<T>>,
    output: Conv2d<T>,
    /// Outputs per anchor.
    width: usize,
    /// Input channels of `output`.
    feature_width: usize,
}

/// Sizes of a head.
#[derive(Clone, Copy)]
pub(crate) struct HeadConfig {
    /// Channels of the feature levels.
    pub(crate) inputs: usize,
    /// Anchors per cell.
    pub(crate) anchors: usize,
    /// Outputs per anchor.
    pub(crate) width: usize,
    /// Initial bias of `output`, so its value for every anchor before training.
    pub(crate) prior: f32,
}

impl<T: Tensor> Head<T> {
    pub(crate) fn new(scope: &Scope<T>, spec: &HeadsSpec, config: HeadConfig) -> Result<Self, WeightsError> {
        let inputs = |index: usize| if index == 0 { config.inputs } else { spec.width };
        let tower = (0..spec.depth).map(|index| {
            let size = Conv2dConfig::same(inputs(index), spec.width, 3);
            let conv = Conv2d::with_bias(&scope.at(format!("conv{}", index + 1)), size, ConvInitial::FanOut)?;
            let norm = |norm| Norm::new(&scope.at(format!("norm{}", index + 1)), spec.width, norm);
            Ok(NormedConv2d { conv, norm: spec.norm.as_ref().map(norm).transpose()? })
        });
        let tower = tower.collect::<Result<_, WeightsError>>()?;
        let size = Conv2dConfig::same(inputs(spec.depth), config.anchors * config.width, 3);
        let output = Conv2d::with_bias(&scope.at("output"), size, ConvInitial::Prior { bias: config.prior })?;
        Ok(Self { tower, output, width: config.width, feature_width: inputs(spec.depth) })
    }

    /// The input of the `output` convolution, one row per cell: `[N, channels, H, W]` to `[N, H * W, feature width]`.
    pub(crate) fn feature_rows(&self, x: &T) -> T {
        self.features(x).per_anchor(self.feature_width)
    }

    fn features(&self, x: &T) -> T {
        self.tower.iter().fold(x.clone(), |x, layer| x.apply(layer).relu())
    }
}

impl<T: Tensor> Layer<T> for Head<T> {
    /// `[N, channels, H, W]` to `[N, H * W * anchors, width]`.
    fn forward(&self, x: &T) -> T {
        self.features(x).apply(&self.output).per_anchor(self.width)
    }
}
