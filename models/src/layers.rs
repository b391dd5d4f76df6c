//! The layers of the network: their tensors and hyperparameters.

use crate::spec::{NormKind, NormSpec};
use crate::weights::{Initial, Role, Scope, WeightsError};

/// Sizes of a convolution with a square kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dConfig {
    /// Input channels.
    pub inputs: usize,
    /// Output channels.
    pub outputs: usize,
    /// Side of the kernel, in pixels.
    pub kernel: usize,
    /// Stride, in pixels.
    pub stride: usize,
    /// Zero padding of each side, in pixels.
    pub padding: usize,
    /// Number of groups of channels that are convolved separately.
    pub groups: usize,
}

impl Conv2dConfig {
    /// A convolution that keeps the image's size: stride 1, padding of half the kernel.
    pub fn same(inputs: usize, outputs: usize, kernel: usize) -> Self {
        Self { inputs, outputs, kernel, stride: 1, padding: kernel / 2, groups: 1 }
    }

    /// The same convolution with this stride.
    pub fn stride(self, stride: usize) -> Self {
        Self { stride, ..self }
    }

    /// The same convolution with this number of groups.
    pub fn groups(self, groups: usize) -> Self {
        Self { groups, ..self }
    }

    /// Side of the output for an input side of `n` pixels.
    pub fn output_side(&self, n: usize) -> usize {
        (n + 2 * self.padding - self.kernel) / self.stride + 1
    }

    /// Weight shape: `[outputs, inputs / groups, kernel, kernel]`.
    pub fn weight_shape(&self) -> [usize; 4] {
        [self.outputs, self.inputs / self.groups, self.kernel, self.kernel]
    }
}

/// A two-dimensional convolution.
#[derive(Clone, Debug)]
pub struct Conv2d<T> {
    /// `[outputs, inputs / groups, kernel, kernel]`.
    pub weight: T,
    /// `[outputs]`.
    pub bias: Option<T>,
    /// Hyperparameters.
    pub config: Conv2dConfig,
}

/// Initial values of a convolution's weight and bias.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum ConvInitial {
    /// Weight normal with variance 2 / (kernel² · outputs); bias uniform within ±1 / √(kernel² · inputs / groups),
    /// PyTorch's default.
    FanOut,
    /// Weight zero and the given bias.
    Prior {
        /// Every element of the bias.
        bias: f32,
    },
}

impl<T> Conv2d<T> {
    /// A convolution without bias, for use before a norm layer.
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

/// Which mean and variance a batch normalization uses while training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistics {
    /// Always the running statistics. Suits small batches.
    Frozen,
    /// The batch's statistics while training, which also updates the running ones; otherwise the running ones.
    Live,
}

/// Batch normalization. All four tensors are `[channels]`.
#[derive(Clone, Debug)]
pub struct BatchNorm<T> {
    /// Scale after normalization.
    pub weight: T,
    /// Shift after normalization.
    pub bias: T,
    /// Running mean of the training data.
    pub running_mean: T,
    /// Running variance of the training data.
    pub running_var: T,
    /// Added to the variance.
    pub epsilon: f32,
    /// Which statistics training uses.
    pub statistics: Statistics,
}

/// Group normalization.
#[derive(Clone, Debug)]
pub struct GroupNorm<T> {
    /// Scale after normalization, `[channels]`.
    pub weight: T,
    /// Shift after normalization, `[channels]`.
    pub bias: T,
    /// Number of groups.
    pub groups: usize,
    /// Added to the variance.
    pub epsilon: f32,
}

/// A norm layer of the spec's kind.
#[derive(Clone, Debug)]
pub enum Norm<T> {
    /// Batch normalization with frozen or live statistics.
    Batch(BatchNorm<T>),
    /// Group normalization.
    Group(GroupNorm<T>),
}

impl<T> Norm<T> {
    pub(crate) fn new(scope: &Scope<T>, channels: usize, spec: &NormSpec) -> Result<Self, WeightsError> {
        let tensor =
            |name: &str, value: f32, role: Role| scope.tensor(name, &[channels], Initial::Constant(value), role);
        let affine = if spec.trains_affine() { Role::Parameter } else { Role::Buffer };
        let (weight, bias) = (tensor("weight", 1.0, affine)?, tensor("bias", 0.0, affine)?);
        let epsilon = spec.epsilon;
        let statistics = match spec.kind {
            NormKind::Group => return Ok(Norm::Group(GroupNorm { weight, bias, groups: spec.groups, epsilon })),
            NormKind::FrozenBatch => Statistics::Frozen,
            NormKind::Batch => Statistics::Live,
        };
        let running_mean = tensor("running_mean", 0.0, Role::Buffer)?;
        let running_var = tensor("running_var", 1.0, Role::Buffer)?;
        Ok(Norm::Batch(BatchNorm { weight, bias, running_mean, running_var, epsilon, statistics }))
    }
}

/// A convolution and the norm of its outputs.
#[derive(Clone, Debug)]
pub struct NormedConv2d<T> {
    /// The convolution.
    pub conv: Conv2d<T>,
    /// The norm, if there is one.
    pub norm: Option<Norm<T>>,
}

impl<T> NormedConv2d<T> {
    /// A convolution without bias; `names` are those of the convolution and of the norm in `scope`.
    pub(crate) fn without_bias(
        scope: &Scope<T>,
        names: [&str; 2],
        config: Conv2dConfig,
        norm: &NormSpec,
    ) -> Result<Self, WeightsError> {
        let conv = Conv2d::without_bias(&scope.at(names[0]), config)?;
        Ok(Self { conv, norm: Some(Norm::new(&scope.at(names[1]), config.outputs, norm)?) })
    }
}

/// Hyperparameters of max pooling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxPool {
    /// Side of the window, in pixels.
    pub kernel: usize,
    /// Stride, in pixels.
    pub stride: usize,
    /// Padding of each side with negative infinity, in pixels.
    pub padding: usize,
}
