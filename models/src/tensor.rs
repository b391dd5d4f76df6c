//! The verbs of the network: what an interpreter must be able to do.

use crate::layers::{BatchNorm, Conv2d, GroupNorm, MaxPool};

/// A value that flows through the network, and the verbs that the network is written in.
///
/// Shapes are `[N, C, H, W]` up to [`per_anchor`](Tensor::per_anchor), `[N, rows, width]` after it. Weights are checked
/// where they enter, so no verb can fail.
pub trait Tensor: Clone {
    /// Two-dimensional cross-correlation: `[N, inputs, H, W]` to `[N, outputs, H', W']`.
    fn conv2d(&self, layer: &Conv2d<Self>) -> Self;

    /// Batch normalization over N, H and W, per channel.
    fn batch_norm(&self, layer: &BatchNorm<Self>) -> Self;

    /// Group normalization over H, W and the channels of a group. <https://arxiv.org/abs/1803.08494>
    fn group_norm(&self, layer: &GroupNorm<Self>) -> Self;

    /// `max(x, 0)`.
    fn relu(&self) -> Self;

    /// `1 / (1 + exp(-x))`.
    fn sigmoid(&self) -> Self;

    /// Element-wise sum of two values of the same shape.
    fn add(&self, other: &Self) -> Self;

    /// Largest value of each window; the padding never wins.
    fn max_pool(&self, window: MaxPool) -> Self;

    /// Nearest-neighbour upsampling: `[N, C, H, W]` to `[N, C, 2H, 2W]`.
    fn upsample2x(&self) -> Self;

    /// One row per anchor: `[N, A * width, H, W]` to `[N, H * W * A, width]`, rows ordered by y, x, anchor.
    fn per_anchor(&self, width: usize) -> Self;

    /// Joins `[N, rows_i, width]` along the rows.
    fn concat(parts: &[Self]) -> Self;

    /// `layer.forward(self)`, so that a forward pass reads as a chain.
    fn apply(&self, layer: &impl Layer<Self>) -> Self {
        layer.forward(self)
    }
}

/// A part of the network that maps one value to one value.
pub trait Layer<T> {
    /// Applies the layer.
    fn forward(&self, x: &T) -> T;
}
