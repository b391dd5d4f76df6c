//! Batch norms with the statistics of the batches of all ranks. <https://arxiv.org/abs/1711.07240>, section 3.3

use std::cell::RefCell;
use std::rc::Rc;

use process_group::ProcessGroup;
use tch::{Kind, Tensor};

use crate::failure::fail;

/// The ranks whose live batch norms are synchronized.
#[derive(Clone)]
struct Synchronized {
    group: Rc<ProcessGroup>,
    /// How often the batch of this rank counts.
    weight: f64,
}

thread_local! {
    /// The network's verbs have no other arguments than tensors.
    static SYNCHRONIZED: RefCell<Option<Synchronized>> = const { RefCell::new(None) };
}

/// Runs a forward pass in which live batch norms use the statistics of the batches of all ranks, which must run it at the
/// same time. `weight` is 1, or 0 if the batch of this rank does not count.
///
/// # Panics
/// As libtorch, when the group fails.
pub(crate) fn synchronized<T>(group: &Rc<ProcessGroup>, weight: f64, forward: impl FnOnce() -> T) -> T {
    /// Ends it also when `forward` panics.
    struct Guard;
    impl Drop for Guard {
        fn drop(&mut self) {
            SYNCHRONIZED.set(None);
        }
    }
    SYNCHRONIZED.set(Some(Synchronized { group: group.clone(), weight }));
    let _guard = Guard;
    forward()
}

/// Parameters and running statistics of a batch norm, each `[C]`.
pub(crate) struct Norm<'a> {
    pub(crate) weight: &'a Tensor,
    pub(crate) bias: &'a Tensor,
    pub(crate) running_mean: &'a Tensor,
    pub(crate) running_var: &'a Tensor,
    pub(crate) epsilon: f64,
    pub(crate) momentum: f64,
}

/// The batch norm of `x`, `[N, C, H, W]`, if it is [`synchronized`]. Updates the running statistics.
pub(crate) fn batch_norm(x: &Tensor, norm: &Norm) -> Option<Tensor> {
    let Synchronized { group, weight } = SYNCHRONIZED.with_borrow(Clone::clone)?;
    let add = |tensor: Tensor| group.differentiable_sum(&tensor).unwrap_or_else(|error| fail(&error));
    let channels = x.size()[1];
    let per_channel = |tensor: &Tensor| tensor.view([1, channels, 1, 1]);
    let sum = |tensor: &Tensor| tensor.sum_dim_intlist([0i64, 2, 3].as_slice(), false, Kind::Float) * weight;

    let values = x.to_kind(Kind::Float);
    let count = (values.numel() as i64 / channels) as f64 * weight;
    let sums = add(Tensor::cat(&[sum(&values), Tensor::full([1], count, (Kind::Float, x.device()))], 0));
    let count = sums.narrow(0, channels, 1).detach();
    let mean = sums.narrow(0, 0, channels) / &count;
    let centered = values - per_channel(&mean);
    // From the differences, because the mean of squares minus the square of the mean would cancel digits.
    let variance = add(sum(&centered.square())) / &count;
    tch::no_grad(|| {
        let unbiased = &variance * &count / (&count - 1.0).clamp_min(1.0);
        // One value per channel has no variance, so it changes nothing.
        let momentum = count.gt(1.0).to_kind(Kind::Float) * norm.momentum;
        for (running, new) in [(norm.running_mean, &mean), (norm.running_var, &unbiased)] {
            let _ = running.shallow_clone().lerp_tensor_(new, &momentum);
        }
    });
    let scale = (variance + norm.epsilon).rsqrt() * norm.weight;
    Some((centered * per_channel(&scale) + per_channel(norm.bias)).to_kind(x.kind()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    /// Differences of rounding: sums in another order.
    const TOLERANCE: f64 = 1e-5;

    #[test]
    fn one_rank_has_the_batch_norm_of_libtorch() {
        tch::manual_seed(0);
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
        let x = random(&[2, 3, 4, 5]) * 2.0 + 7.0;
        let output_gradient = random(&[2, 3, 4, 5]);
        let [weight, bias] = [random(&[3]), random(&[3])];
        let run = |norm: &dyn Fn(&Tensor, &Tensor, &Tensor, &Tensor, &Tensor) -> Tensor| {
            let leaves = [&x, &weight, &bias].map(|leaf| leaf.copy().set_requires_grad(true));
            let (mean, var) =
                (Tensor::zeros([3], (Kind::Float, Device::Cpu)), Tensor::ones([3], (Kind::Float, Device::Cpu)));
            let y = norm(&leaves[0], &leaves[1], &leaves[2], &mean, &var);
            let gradients = Tensor::run_backward(&[(&y * &output_gradient).sum(Kind::Float)], &leaves, false, false);
            [y, mean, var].into_iter().chain(gradients).collect::<Vec<_>>()
        };
        let expected = run(&|x, weight, bias, mean, var| {
            x.batch_norm(Some(weight), Some(bias), Some(mean), Some(var), true, 0.1, 1e-5, false)
        });
        let group = Rc::new(ProcessGroup::alone());
        let found = run(&|x, weight, bias, running_mean, running_var| {
            let norm = Norm { weight, bias, running_mean, running_var, epsilon: 1e-5, momentum: 0.1 };
            synchronized(&group, 1.0, || batch_norm(x, &norm)).unwrap()
        });
        for (expected, found) in expected.iter().zip(&found) {
            let difference = (expected - found).abs().max().double_value(&[]);
            assert!(difference < TOLERANCE, "{difference}");
        }
        let norm = Norm {
            weight: &weight,
            bias: &bias,
            running_mean: &bias,
            running_var: &bias,
            epsilon: 1e-5,
            momentum: 0.1,
        };
        assert!(batch_norm(&x, &norm).is_none(), "only within `synchronized`");
        // One value per channel has no variance, which leaves the running statistics.
        let before = bias.copy();
        let _ = synchronized(&group, 1.0, || batch_norm(&random(&[1, 3, 1, 1]), &norm)).unwrap();
        assert!(bias == before);
    }
}
