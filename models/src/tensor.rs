//! The operations of the network, which every interpreter implements.

use crate::layers::{BatchNorm, Conv2d, GroupNorm, MaxPool, Norm, NormedConv2d};

/// A tensor with the operations that the network uses.
///
/// Shapes are `[N, C, H, W]` before [`per_anchor`](Tensor::per_anchor), `[N, rows, width]` after it. The shapes of weights
/// are checked when the network is built, so no operation can fail.
pub trait Tensor: Clone {
    /// Two-dimensional cross-correlation: `[N, inputs, H, W]` to `[N, outputs, H', W']`.
    fn conv2d(&self, layer: &Conv2d<Self>) -> Self;

    /// A convolution and the batch normalization of its outputs over N, H and W, per channel. Norms with constant
    /// statistics may be computed as a part of the convolution.
    fn conv2d_batch_norm(&self, conv: &Conv2d<Self>, norm: &BatchNorm<Self>) -> Self;

    /// Group normalization over H, W and the channels of a group. <https://arxiv.org/abs/1803.08494>
    fn group_norm(&self, layer: &GroupNorm<Self>) -> Self;

    /// `max(x, 0)`.
    fn relu(&self) -> Self;

    /// `1 / (1 + exp(-x))`.
    fn sigmoid(&self) -> Self;

    /// Element-wise sum of two values of the same shape.
    fn add(&self, other: &Self) -> Self;

    /// Maximum of each window; padding is ignored.
    fn max_pool(&self, window: MaxPool) -> Self;

    /// Nearest-neighbor upsampling: `[N, C, H, W]` to `[N, C, 2H, 2W]`.
    fn upsample2x(&self) -> Self;

    /// One row per anchor: `[N, A * width, H, W]` to `[N, H * W * A, width]`, rows ordered by y, x, anchor.
    fn per_anchor(&self, width: usize) -> Self;

    /// Concatenates `[N, rows_i, width]` along the rows.
    fn concat(parts: &[Self]) -> Self;

    /// `layer.forward(self)`, for chaining.
    fn apply(&self, layer: &impl Layer<Self>) -> Self {
        layer.forward(self)
    }
}

/// A part of the network that maps one tensor to one tensor.
pub trait Layer<T> {
    /// Applies the layer.
    fn forward(&self, x: &T) -> T;
}

impl<T: Tensor> Layer<T> for Conv2d<T> {
    fn forward(&self, x: &T) -> T {
        x.conv2d(self)
    }
}

impl<T: Tensor> Layer<T> for NormedConv2d<T> {
    fn forward(&self, x: &T) -> T {
        match &self.norm {
            Some(Norm::Batch(norm)) => x.conv2d_batch_norm(&self.conv, norm),
            Some(Norm::Group(norm)) => x.conv2d(&self.conv).group_norm(norm),
            None => x.conv2d(&self.conv),
        }
    }
}
