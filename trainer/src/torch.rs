//! Implements the network's tensor operations with libtorch.

use models::{BatchNorm, Conv2d, Conv2dConfig, GroupNorm, MaxPool, Statistics, Tensor};
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

/// The convolution of `x`, `[N, inputs, H, W]`, in its data type.
fn convolution(
    x: &tch::Tensor,
    weight: &tch::Tensor,
    bias: Option<&tch::Tensor>,
    config: &Conv2dConfig,
) -> tch::Tensor {
    let (stride, padding) = ([config.stride as i64; 2], [config.padding as i64; 2]);
    // On the CPU, libtorch 2.11 leaves parts of a kernel's gradient unset for bfloat16 images one pixel wide.
    let kind = if x.kind() == Kind::BFloat16 && x.size()[3] == 1 { Kind::Float } else { x.kind() };
    let bias = bias.map(|bias| bias.to_kind(kind));
    let y = x.to_kind(kind).conv2d(&weight.to_kind(kind), bias, stride, padding, [1, 1], config.groups as i64);
    y.to_kind(x.kind())
}

impl<const TRAINING: bool> Clone for Torch<TRAINING> {
    /// Shares the data.
    fn clone(&self) -> Self {
        Self(self.0.shallow_clone())
    }
}

impl<const TRAINING: bool> Tensor for Torch<TRAINING> {
    fn conv2d(&self, layer: &Conv2d<Self>) -> Self {
        Self(convolution(&self.0, &layer.weight.0, layer.bias.as_ref().map(|bias| &bias.0), &layer.config))
    }

    fn conv2d_batch_norm(&self, conv: &Conv2d<Self>, norm: &BatchNorm<Self>) -> Self {
        let epsilon = f64::from(norm.epsilon);
        let [weight, bias] = [&norm.weight.0, &norm.bias.0];
        let [running_mean, running_var] = [&norm.running_mean.0, &norm.running_var.0];
        // If the weights of a norm are frozen, its statistics are too.
        if TRAINING && norm.statistics == Statistics::Live && weight.requires_grad() {
            let y = self.conv2d(conv).0;
            let norm = Norm { weight, bias, running_mean, running_var, epsilon, momentum: MOMENTUM };
            return Self(sync_batch_norm::batch_norm(&y, &norm).unwrap_or_else(|| {
                // One value per channel has no variance: libtorch would make the running ones NaN.
                let has_variance = y.numel() as i64 > y.size()[1];
                let [mean, var] = [running_mean, running_var].map(|running| has_variance.then_some(running));
                y.batch_norm(Some(weight), Some(bias), mean, var, true, MOMENTUM, epsilon, true)
            }));
        }
        // A constant scale and shift of the outputs. As part of the convolution, it costs no pass over them.
        let scale = (running_var + epsilon).rsqrt() * weight;
        let mean = conv.bias.as_ref().map_or(running_mean.shallow_clone(), |bias| running_mean - &bias.0);
        let kernel = &conv.weight.0 * scale.view([-1, 1, 1, 1]);
        Self(convolution(&self.0, &kernel, Some(&(bias - mean * scale)), &conv.config))
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

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    /// Differences of rounding: the kernel is scaled before the sum, not after it.
    const TOLERANCE: f64 = 1e-5;

    #[test]
    fn constant_batch_norm_as_part_of_a_convolution_has_its_values_and_gradients() {
        tch::manual_seed(0);
        let random = |shape: &[i64]| tch::Tensor::randn(shape, (Kind::Float, Device::Cpu));
        let config = Conv2dConfig { inputs: 4, outputs: 6, kernel: 3, stride: 2, padding: 1, groups: 2 };
        let constants = [random(&[6]), random(&[6]).abs() + 0.5];
        let leaves = [random(&[2, 4, 7, 6]), random(&[6, 2, 3, 3]), random(&[6]), random(&[6]), random(&[6])];
        let output_gradient = random(&[2, 6, 4, 3]);
        let run = |folded: bool, bias: bool| {
            let leaves = leaves.each_ref().map(|leaf| leaf.copy().set_requires_grad(true));
            let [x, kernel, conv_bias, weight, shift] = leaves.each_ref().map(tch::Tensor::shallow_clone);
            let [running_mean, running_var] = constants.each_ref().map(|constant| Torch::<true>(constant.copy()));
            let conv = Conv2d { weight: Torch(kernel), bias: bias.then_some(Torch(conv_bias)), config };
            let norm = BatchNorm {
                weight: Torch(weight),
                bias: Torch(shift),
                running_mean,
                running_var,
                epsilon: 1e-5,
                statistics: Statistics::Frozen,
            };
            let x = Torch(x);
            let y = if folded {
                x.conv2d_batch_norm(&conv, &norm).0
            } else {
                let [weight, bias] = [&norm.weight.0, &norm.bias.0].map(Some);
                let [mean, var] = [&norm.running_mean.0, &norm.running_var.0].map(Some);
                x.conv2d(&conv).0.batch_norm(weight, bias, mean, var, false, 0.0, 1e-5, false)
            };
            // Without it, the bias of the convolution has no gradient.
            let [x, kernel, conv_bias, weight, shift] = &leaves;
            let leaves = [x, kernel, weight, shift].into_iter().chain(bias.then_some(conv_bias)).collect::<Vec<_>>();
            let gradients =
                tch::Tensor::run_backward(&[(&y * &output_gradient).sum(Kind::Float)], &leaves, false, false);
            let constants = [norm.running_mean.0, norm.running_var.0];
            [y].into_iter().chain(constants).chain(gradients).collect::<Vec<_>>()
        };
        for bias in [true, false] {
            let [expected, found] = [false, true].map(|folded| run(folded, bias));
            assert_eq!(found.len(), if bias { 8 } else { 7 });
            for (expected, found) in expected.iter().zip(&found) {
                let difference = (expected - found).abs().max().double_value(&[]);
                assert!(difference < TOLERANCE * expected.abs().max().double_value(&[]).max(1.0), "{difference}");
            }
        }
    }

    #[test]
    fn one_value_per_channel_leaves_the_running_statistics() {
        let vector = |value: f64| Torch::<true>(tch::Tensor::full([3], value, (Kind::Float, Device::Cpu)));
        let weight = Torch(tch::Tensor::ones([3, 3, 1, 1], (Kind::Float, Device::Cpu)));
        let config = Conv2dConfig { inputs: 3, outputs: 3, kernel: 1, stride: 1, padding: 0, groups: 1 };
        let norm = BatchNorm {
            weight: Torch(vector(1.0).0.set_requires_grad(true)),
            bias: vector(0.25),
            running_mean: vector(0.5),
            running_var: vector(2.0),
            epsilon: 1e-5,
            statistics: Statistics::Live,
        };
        let pixel = |side: i64| Torch::<true>(tch::Tensor::rand([1, 3, side, side], (Kind::Float, Device::Cpu)));
        let run = |x: Training| x.conv2d_batch_norm(&Conv2d { weight: weight.clone(), bias: None, config }, &norm).0;
        let statistics = || [&norm.running_mean, &norm.running_var].map(|tensor| tensor.0.double_value(&[0]));
        // The mean is subtracted from the value after both are divided by the square root of epsilon.
        assert!((run(pixel(1)) - 0.25).abs().max().double_value(&[]) < 1e-3);
        assert_eq!(statistics(), [0.5, 2.0]);
        let _ = run(pixel(2));
        assert!(statistics() != [0.5, 2.0] && statistics().iter().all(|value| value.is_finite()));
    }
}
