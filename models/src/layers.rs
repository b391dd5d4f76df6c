//! The layers that the network is made of: named tensors and the numbers that give them meaning.

use crate::spec::{NormKind, NormSpec};
use crate::tensor::{Layer, Tensor};
use crate::weights::{Initial, Scope, WeightsError};

/// Sizes of a convolution with a square kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dConfig {
    /// Channels in.
    pub inputs: usize,
    /// Channels out.
    pub outputs: usize,
    /// Side of the kernel.
    pub kernel: usize,
    /// Step between windows.
    pub stride: usize,
    /// Zeros added on each side.
    pub padding: usize,
    /// Blocks of channels that do not see each other.
    pub groups: usize,
}

impl Conv2dConfig {
    /// A convolution that keeps the image's size: stride 1, padding of half the kernel.
    pub fn same(inputs: usize, outputs: usize, kernel: usize) -> Self {
        Self { inputs, outputs, kernel, stride: 1, padding: kernel / 2, groups: 1 }
    }

    /// The same convolution at every `stride`-th place.
    pub fn stride(self, stride: usize) -> Self {
        Self { stride, ..self }
    }

    /// The same convolution in `groups` blocks of channels.
    pub fn groups(self, groups: usize) -> Self {
        Self { groups, ..self }
    }

    /// Side of the output for a side of `n` pixels.
    pub fn output_side(&self, n: usize) -> usize {
        (n + 2 * self.padding - self.kernel) / self.stride + 1
    }

    /// Weight shape: `[outputs, inputs / groups, kernel, kernel]`.
    pub fn weight_shape(&self) -> [usize; 4] {
        [self.outputs, self.inputs / self.groups, self.kernel, self.kernel]
    }
}

/// A convolution.
#[derive(Clone, Debug)]
pub struct Conv2d<T> {
    /// `[outputs, inputs / groups, kernel, kernel]`.
    pub weight: T,
    /// `[outputs]`.
    pub bias: Option<T>,
    /// Sizes.
    pub config: Conv2dConfig,
}

/// How a convolution's weight and bias start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum ConvInitial {
    /// Weight normal with variance 2 / (kernel² · outputs), bias uniform within 1 / √(kernel² · inputs) as PyTorch has it.
    FanOut,
    /// Constant weight zero and the given bias.
    Prior {
        /// Every element of the bias.
        bias: f32,
    },
}

impl<T> Conv2d<T> {
    /// A convolution without bias, as it stands before a normalization.
    pub(crate) fn without_bias(scope: &Scope<T>, config: Conv2dConfig) -> Result<Self, WeightsError> {
        let weight = scope.parameter("weight", &config.weight_shape(), fan_out(&config))?;
        Ok(Self { weight, bias: None, config })
    }

    /// A convolution with bias.
    pub(crate) fn with_bias(
        scope: &Scope<T>,
        config: Conv2dConfig,
        initial: ConvInitial,
    ) -> Result<Self, WeightsError> {
        let fan_in = config.kernel * config.kernel * config.inputs / config.groups;
        let (weight, bias) = match initial {
            ConvInitial::FanOut => (fan_out(&config), Initial::Uniform { bound: (fan_in as f32).sqrt().recip() }),
            ConvInitial::Prior { bias } => (Initial::Constant(0.0), Initial::Constant(bias)),
        };
        let weight = scope.parameter("weight", &config.weight_shape(), weight)?;
        let bias = Some(scope.parameter("bias", &[config.outputs], bias)?);
        Ok(Self { weight, bias, config })
    }
}

fn fan_out(config: &Conv2dConfig) -> Initial {
    let fan_out = config.kernel * config.kernel * config.outputs;
    Initial::Normal { std: (2.0 / fan_out as f32).sqrt() }
}

impl<T: Tensor> Layer<T> for Conv2d<T> {
    fn forward(&self, x: &T) -> T {
        x.conv2d(self)
    }
}

/// Which mean and variance a batch normalization uses while training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistics {
    /// The running ones, always: what small batches need.
    Frozen,
    /// The batch's own while training (the running ones follow), the running ones otherwise.
    Live,
}

/// Batch normalization. All four tensors are `[channels]`.
#[derive(Clone, Debug)]
pub struct BatchNorm<T> {
    /// Factor after normalization.
    pub weight: T,
    /// Term after normalization.
    pub bias: T,
    /// Mean over the training data.
    pub running_mean: T,
    /// Variance over the training data.
    pub running_var: T,
    /// Added to the variance.
    pub epsilon: f32,
    /// Which statistics training uses.
    pub statistics: Statistics,
}

/// Group normalization.
#[derive(Clone, Debug)]
pub struct GroupNorm<T> {
    /// Factor after normalization, `[channels]`.
    pub weight: T,
    /// Term after normalization, `[channels]`.
    pub bias: T,
    /// Number of groups.
    pub groups: usize,
    /// Added to the variance.
    pub epsilon: f32,
}

/// A normalization of the kind that the spec names.
#[derive(Clone, Debug)]
pub enum Norm<T> {
    /// Frozen or live batch normalization.
    Batch(BatchNorm<T>),
    /// Group normalization.
    Group(GroupNorm<T>),
}

impl<T> Norm<T> {
    pub(crate) fn new(scope: &Scope<T>, channels: usize, spec: &NormSpec) -> Result<Self, WeightsError> {
        let weight = scope.parameter("weight", &[channels], Initial::Constant(1.0))?;
        let bias = scope.parameter("bias", &[channels], Initial::Constant(0.0))?;
        let epsilon = spec.epsilon;
        let statistics = match spec.kind {
            NormKind::Group => return Ok(Norm::Group(GroupNorm { weight, bias, groups: spec.groups, epsilon })),
            NormKind::FrozenBatch => Statistics::Frozen,
            NormKind::Batch => Statistics::Live,
        };
        let running_mean = scope.buffer("running_mean", &[channels], Initial::Constant(0.0))?;
        let running_var = scope.buffer("running_var", &[channels], Initial::Constant(1.0))?;
        Ok(Norm::Batch(BatchNorm { weight, bias, running_mean, running_var, epsilon, statistics }))
    }
}

impl<T: Tensor> Layer<T> for Norm<T> {
    fn forward(&self, x: &T) -> T {
        match self {
            Norm::Batch(norm) => x.batch_norm(norm),
            Norm::Group(norm) => x.group_norm(norm),
        }
    }
}

/// Window of a max pooling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxPool {
    /// Side of the window.
    pub kernel: usize,
    /// Step between windows.
    pub stride: usize,
    /// Border that never wins.
    pub padding: usize,
}
