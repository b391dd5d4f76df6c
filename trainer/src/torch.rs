//! Implements the network's tensor operations with libtorch.

use models::{BatchNorm, Conv2d, GroupNorm, MaxPool, Statistics, Tensor};
use ndarray::Array4;
use tch::Kind;
use tch::kind::Element;

use crate::sync_batch_norm::{self, Norm};

/// Momentum of the running statistics; PyTorch's default.
const MOMENTUM: f64 = 0.1;

/// A libtorch tensor. The network computes in the data type of its input: convolutions cast their weights to it, so
/// that bfloat16 images and float32 weights give mixed precision.
///
/// `TRAINING` decides whether live batch norms use the statistics of their batch. The forward pass thus needs no mode.
#[derive(Debug)]
pub struct Torch<const TRAINING: bool>(pub tch::Tensor);

/// A tensor of a network in training.
pub type Training = Torch<true>;

/// A tensor of a network for inference.
pub type Inference = Torch<false>;

/// A copy of images as a tensor of the same shape, on the CPU.
///
/// # Panics
/// When `images` is not in standard layout.
pub fn images<T: Element>(images: &Array4<T>) -> tch::Tensor {
    let shape: Vec<i64> = images.shape().iter().map(|n| *n as i64).collect();
    let values = images.as_slice().expect("images are in standard layout");
    tch::Tensor::from_slice(values).view(shape.as_slice())
}

/// Images `[N, 3, H, W]` in the channels-last memory format (NHWC).
pub(crate) fn channels_last(images: &tch::Tensor) -> tch::Tensor {
    images.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

impl<const TRAINING: bool> Clone for Torch<TRAINING> {
    /// Shares the data.
    fn clone(&self) -> Self {
        Self(self.0.shallow_clone())
    }
}

impl<const TRAINING: bool> Tensor for Torch<TRAINING> {
    fn conv2d(&self, layer: &Conv2d<Self>) -> Self {
        let config = &layer.config;
        let (stride, padding) = ([config.stride as i64; 2], [config.padding as i64; 2]);
        // On the CPU, libtorch 2.11 leaves parts of a kernel's gradient unset for bfloat16 images one pixel wide.
        let narrow = self.0.kind() == Kind::BFloat16 && self.0.size()[3] == 1;
        let x = if narrow { self.0.to_kind(Kind::Float) } else { self.0.shallow_clone() };
        let weight = layer.weight.0.to_kind(x.kind());
        let bias = layer.bias.as_ref().map(|bias| bias.0.to_kind(x.kind()));
        let y = x.conv2d(&weight, bias, stride, padding, [1, 1], config.groups as i64);
        Self(y.to_kind(self.0.kind()))
    }

    fn batch_norm(&self, layer: &BatchNorm<Self>) -> Self {
        // If the weights of a norm are frozen, its statistics are too.
        let live = TRAINING && layer.statistics == Statistics::Live && layer.weight.0.requires_grad();
        let norm = Norm {
            weight: &layer.weight.0,
            bias: &layer.bias.0,
            running_mean: &layer.running_mean.0,
            running_var: &layer.running_var.0,
            epsilon: layer.epsilon.into(),
            momentum: MOMENTUM,
        };
        if let Some(y) = live.then(|| sync_batch_norm::batch_norm(&self.0, &norm)).flatten() {
            return Self(y);
        }
        let (weight, bias) = (Some(&layer.weight.0), Some(&layer.bias.0));
        let (mean, var) = (Some(&layer.running_mean.0), Some(&layer.running_var.0));
        Self(self.0.batch_norm(weight, bias, mean, var, live, MOMENTUM, layer.epsilon.into(), true))
    }

    fn group_norm(&self, layer: &GroupNorm<Self>) -> Self {
        let (weight, bias) = (Some(&layer.weight.0), Some(&layer.bias.0));
        // CUDA requires the same data type for input and weights.
        let x = self.0.to_kind(layer.weight.0.kind());
        let y = x.group_norm(layer.groups as i64, weight, bias, layer.epsilon.into(), true);
        Self(y.to_kind(self.0.kind()))
    }

    fn relu(&self) -> Self {
        Self(self.0.relu())
    }

    fn sigmoid(&self) -> Self {
        Self(self.0.sigmoid())
    }

    fn add(&self, other: &Self) -> Self {
        Self(&self.0 + &other.0)
    }

    fn max_pool(&self, window: MaxPool) -> Self {
        let [kernel, stride, padding] = [window.kernel, window.stride, window.padding].map(|n| [n as i64; 2]);
        Self(self.0.max_pool2d(kernel, stride, padding, [1, 1], false))
    }

    fn upsample2x(&self) -> Self {
        let [height, width] = [self.0.size()[2] * 2, self.0.size()[3] * 2];
        Self(self.0.upsample_nearest2d([height, width], 2.0, 2.0))
    }

    fn per_anchor(&self, width: usize) -> Self {
        let images = self.0.size()[0];
        Self(self.0.permute([0, 2, 3, 1]).reshape([images, -1, width as i64]))
    }

    fn concat(parts: &[Self]) -> Self {
        Self(tch::Tensor::cat(&parts.iter().map(|part| &part.0).collect::<Vec<_>>(), 1))
    }
}
