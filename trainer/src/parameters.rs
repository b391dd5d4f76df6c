//! The network's tensors in libtorch: all that is learned in one flat tensor, all that is kept in another.
//!
//! Named tensors are views of these two, so that an optimizer, a gradient norm or a saved state is a few lines on one
//! tensor. Matrices come before vectors, because weight decay is for the former only.

use std::collections::BTreeMap;

use models::{Initial, Parameter, Role, Weights, WeightsError};
use ndarray::ArrayD;
use tch::{Device, Kind, Tensor};

use crate::torch::Torch;

/// The numbers of one network on one device.
pub struct Parameters {
    /// Everything learned, `[count]`.
    pub learned: Tensor,
    /// Everything kept beside it, `[count]`.
    pub kept: Tensor,
    /// How many of the learned numbers weight decay is for; they come first.
    pub decayed: i64,
    /// Views of `learned`, in its order; each takes gradients.
    leaves: Vec<Tensor>,
    views: BTreeMap<String, Tensor>,
}

impl Parameters {
    /// Tensors that hold what `initial` says of each, which must be as long as the parameter.
    fn new(list: &[Parameter], device: Device, mut initial: impl FnMut(&Parameter) -> Tensor) -> Self {
        let (learned, kept): (Vec<_>, Vec<_>) = list.iter().partition(|parameter| parameter.role == Role::Parameter);
        let (matrices, vectors): (Vec<_>, Vec<_>) = learned.into_iter().partition(|p| p.shape.len() > 1);
        let count = |list: &[&Parameter]| list.iter().map(|parameter| parameter.len() as i64).sum::<i64>();
        let decayed = count(&matrices);
        let learned = [matrices, vectors].concat();

        let mut lay_out = |list: &[&Parameter]| {
            let flat = Tensor::zeros([count(list)], (Kind::Float, device));
            let mut start = 0;
            let view = |parameter: &&Parameter| {
                let length = parameter.len() as i64;
                let shape: Vec<i64> = parameter.shape.iter().map(|n| *n as i64).collect();
                let mut view = flat.narrow(0, start, length).view(shape.as_slice()).detach();
                view.copy_(&initial(parameter).view(shape.as_slice()));
                start += length;
                (parameter.name.clone(), view)
            };
            let views: Vec<_> = list.iter().map(view).collect();
            (flat, views)
        };
        let (learned, learned_views) = lay_out(&learned);
        let (kept, kept_views) = lay_out(&kept);
        let leaves: Vec<_> = learned_views.iter().map(|(_, view)| view.set_requires_grad(true)).collect();
        let views = learned_views.into_iter().chain(kept_views).collect();
        Self { learned, kept, decayed, leaves, views }
    }

    /// The tensors of `list` as they are before training, drawn from libtorch's generator on the CPU.
    pub fn random(list: &[Parameter], device: Device, seed: u64) -> Self {
        tch::manual_seed(seed as i64);
        Self::new(list, device, |parameter| {
            let mut values = Tensor::empty([parameter.len() as i64], (Kind::Float, Device::Cpu));
            match parameter.initial {
                Initial::Constant(value) => values.fill_(f64::from(value)),
                Initial::Normal { std } => values.normal_(0.0, std.into()),
                Initial::Uniform { bound } => values.uniform_(-f64::from(bound), bound.into()),
            }
        })
    }

    /// The tensors of a checkpoint, which has been held against its spec.
    pub fn of_tensors(list: &[Parameter], device: Device, tensors: &BTreeMap<String, ArrayD<f32>>) -> Self {
        Self::new(list, device, |parameter| {
            let tensor = tensors.get(&parameter.name).expect("a checkpoint holds every tensor of its spec");
            Tensor::from_slice(tensor.as_slice().expect("a checkpoint's tensors are in standard layout"))
        })
    }

    /// A copy of every tensor, by name.
    pub fn to_tensors(&self) -> BTreeMap<String, ArrayD<f32>> {
        self.views.iter().map(|(name, view)| (name.clone(), to_array(view))).collect()
    }

    /// The gradient of `loss` in the layout of `learned`.
    pub fn gradient(&self, loss: &Tensor) -> Tensor {
        let gradients = Tensor::run_backward(&[loss], &self.leaves, false, false);
        let flat: Vec<_> = gradients.iter().map(|gradient| gradient.reshape(-1)).collect();
        Tensor::cat(&flat, 0)
    }
}

impl<const TRAINING: bool> Weights<Torch<TRAINING>> for Parameters {
    fn tensor(&self, parameter: Parameter) -> Result<Torch<TRAINING>, WeightsError> {
        let view = self.views.get(&parameter.name);
        view.map(|view| Torch(view.shallow_clone())).ok_or(WeightsError::Missing { name: parameter.name })
    }
}

/// A copy of a float tensor in the processor's memory.
pub fn to_array(tensor: &Tensor) -> ArrayD<f32> {
    let shape: Vec<usize> = tensor.size().into_iter().map(|n| n as usize).collect();
    let mut values = vec![0.0; tensor.numel()];
    tensor.detach().to_device(Device::Cpu).contiguous().copy_data(&mut values, tensor.numel());
    ArrayD::from_shape_vec(shape, values).expect("a tensor has as many elements as its shape says")
}
