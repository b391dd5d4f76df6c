//! The network's tensors in libtorch: trainable parameters in one flat tensor, buffers in another, frozen parameters in a
//! third.
//!
//! Named tensors are views of these, so that an optimizer, an average, a gradient norm or a saved state takes a few
//! lines on one tensor. Parameters with the same weight decay and learning rate are adjacent.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use models::{Initial, Parameter, Role, Weights, WeightsError};
use ndarray::ArrayD;
use tch::{Device, Kind, Tensor};

use crate::part::Part;
use crate::torch::Torch;

/// Locked while libtorch's global random number generator is seeded and used.
static GENERATOR: Mutex<()> = Mutex::new(());

/// The tensors of one network on one device.
pub struct Parameters {
    /// The trainable parameters, `[count]`.
    pub trainable: Tensor,
    /// Buffers: the running statistics, `[count]`.
    pub buffers: Tensor,
    /// Frozen parameters, `[count]`.
    pub frozen: Tensor,
    /// Consecutive ranges of `trainable` that cover it completely.
    pub segments: Vec<Segment>,
    /// Views of `trainable`, in order, that require gradients.
    leaves: Vec<Tensor>,
    views: BTreeMap<String, Tensor>,
    layout: Layout,
}

/// A range of trainable parameters with the same weight decay and learning rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Number of elements.
    pub length: i64,
    /// Whether weight decay applies: to kernels, not to norms and biases.
    pub decays: bool,
    /// Whether they belong to the backbone.
    pub backbone: bool,
}

/// Which parameters are trainable, and their memory format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// The network is frozen up to and including this part. `None`: nothing is frozen.
    pub frozen: Option<Part>,
    /// Whether kernels are stored in the channels-last memory format (NHWC).
    pub channels_last: bool,
}

impl Parameters {
    /// Tensors with the values that `initial` returns, which must have as many elements as the parameter.
    fn new(list: &[Parameter], layout: Layout, device: Device, mut initial: impl FnMut(&Parameter) -> Tensor) -> Self {
        let (parameters, buffers): (Vec<_>, Vec<_>) =
            list.iter().partition(|parameter| parameter.role == Role::Parameter);
        let (trainable, frozen): (Vec<_>, Vec<_>) = parameters.into_iter().partition(|p| layout.is_trainable(p));
        let mut segments = Vec::new();
        let mut ordered = Vec::new();
        for (decays, backbone) in [(true, true), (true, false), (false, true), (false, false)] {
            let segment = trainable
                .iter()
                .filter(|p| (p.shape.len() > 1, Part::of(&p.name).is_backbone()) == (decays, backbone))
                .copied();
            let start = ordered.len();
            ordered.extend(segment);
            segments.push(Segment { length: count(&ordered[start..]), decays, backbone });
        }

        let mut lay_out = |list: &[&Parameter]| {
            let flat = Tensor::zeros([count(list)], (Kind::Float, device));
            let mut start = 0;
            let view = |parameter: &&Parameter| {
                let length = parameter.len() as i64;
                let shape: Vec<i64> = parameter.shape.iter().map(|n| *n as i64).collect();
                let mut view = layout.unflatten(&flat.narrow(0, start, length), &shape).detach();
                view.copy_(&initial(parameter).view(shape.as_slice()));
                start += length;
                (parameter.name.clone(), view)
            };
            let views: Vec<_> = list.iter().map(view).collect();
            (flat, views)
        };
        let (trainable, trainable_views) = lay_out(&ordered);
        let (buffers, buffer_views) = lay_out(&buffers);
        let leaves: Vec<_> = trainable_views.iter().map(|(_, view)| view.set_requires_grad(true)).collect();
        let (frozen, frozen_views) = lay_out(&frozen);
        let views = trainable_views.into_iter().chain(buffer_views).chain(frozen_views).collect();
        Self { trainable, buffers, frozen, segments, leaves, views, layout }
    }

    /// The initial values of the tensors of `list`, from libtorch's random number generator on the CPU.
    pub fn random(list: &[Parameter], layout: Layout, device: Device, seed: u64) -> Self {
        let _guard = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
        // Seeding is the one call whose failure libtorch does not report but abort with: the generator does not exist where the
        // system has no random numbers, such as in a root without /dev. Any other use of it reports that.
        let _ = Tensor::rand([1], (Kind::Float, Device::Cpu));
        tch::manual_seed(seed as i64);
        Self::new(list, layout, device, |parameter| {
            let mut values = Tensor::empty([parameter.len() as i64], (Kind::Float, Device::Cpu));
            match parameter.initial {
                Initial::Constant(value) => values.fill_(f64::from(value)),
                Initial::Normal { std } => values.normal_(0.0, std.into()),
                Initial::Uniform { bound } => values.uniform_(-f64::from(bound), bound.into()),
            }
        })
    }

    /// The tensors of a checkpoint, which must contain all tensors of `list` in their shapes.
    pub fn from_tensors(
        list: &[Parameter],
        layout: Layout,
        device: Device,
        tensors: &BTreeMap<String, ArrayD<f32>>,
    ) -> Self {
        Self::new(list, layout, device, |parameter| {
            let tensor = tensors.get(&parameter.name).expect("a checkpoint contains every tensor of its spec");
            Tensor::from_slice(tensor.as_slice().expect("a checkpoint's tensors are in standard layout"))
        })
    }

    /// A copy with the same layout. `list` must be the list that `self` was created from.
    pub fn copy(&self, list: &[Parameter]) -> Self {
        let view = |parameter: &Parameter| self.views[&parameter.name].detach().reshape(-1);
        Self::new(list, self.layout, self.trainable.device(), view)
    }

    /// Which parameters are trainable, and their memory format.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The tensor with this name.
    pub fn view(&self, name: &str) -> Option<&Tensor> {
        self.views.get(name)
    }

    /// A copy of every tensor, by name.
    pub fn to_tensors(&self) -> BTreeMap<String, ArrayD<f32>> {
        self.views.iter().map(|(name, view)| (name.clone(), to_array(view))).collect()
    }

    /// The gradient of `loss`, `[count]`, in the order of `trainable`.
    pub fn gradient(&self, loss: &Tensor) -> Tensor {
        let gradients = Tensor::run_backward(&[loss], &self.leaves, false, false);
        let flat: Vec<_> = gradients.iter().map(|gradient| self.layout.flatten(gradient)).collect();
        Tensor::cat(&flat, 0)
    }
}

impl Layout {
    fn is_trainable(self, parameter: &Parameter) -> bool {
        parameter.role == Role::Parameter && self.frozen.is_none_or(|frozen| Part::of(&parameter.name) > frozen)
    }

    /// A view of `flat`, `[count]`, as a tensor of `shape`.
    fn unflatten(self, flat: &Tensor, shape: &[i64]) -> Tensor {
        match shape {
            [outputs, inputs, height, width] if self.channels_last => {
                flat.view([*outputs, *height, *width, *inputs]).permute([0, 3, 1, 2])
            }
            _ => flat.view(shape),
        }
    }

    /// The elements of `tensor`, `[count]`: the inverse of [`Self::unflatten`].
    fn flatten(self, tensor: &Tensor) -> Tensor {
        if self.channels_last && tensor.dim() == 4 {
            tensor.permute([0, 2, 3, 1]).reshape(-1)
        } else {
            tensor.reshape(-1)
        }
    }
}

fn count(list: &[&Parameter]) -> i64 {
    list.iter().map(|parameter| parameter.len() as i64).sum()
}

impl<const TRAINING: bool> Weights<Torch<TRAINING>> for Parameters {
    fn tensor(&self, parameter: Parameter) -> Result<Torch<TRAINING>, WeightsError> {
        let view = self.views.get(&parameter.name);
        view.map(|view| Torch(view.shallow_clone())).ok_or(WeightsError::Missing { name: parameter.name })
    }
}

/// A copy of a float32 tensor in CPU memory.
pub fn to_array(tensor: &Tensor) -> ArrayD<f32> {
    let shape: Vec<usize> = tensor.size().into_iter().map(|n| n as usize).collect();
    let mut values = vec![0.0; tensor.numel()];
    tensor.detach().to_device(Device::Cpu).contiguous().copy_data(&mut values, tensor.numel());
    ArrayD::from_shape_vec(shape, values).expect("a tensor has as many elements as its shape")
}

#[cfg(test)]
mod tests {
    use models::spec::Class;
    use models::{ModelSpec, parameters};

    use super::*;

    #[test]
    fn segments_separate_kernels_from_norms_and_biases_and_the_backbone_from_the_rest() {
        let mut spec = ModelSpec::preset("resnet18").unwrap();
        spec.classes = vec![Class { id: 1, name: "cell".to_owned() }];
        let list = parameters(&spec).unwrap();
        let parameters = Parameters::random(&list, Layout::default(), Device::Cpu, 0);
        let mut start = 0;
        for (mark, segment) in parameters.segments.iter().enumerate() {
            let _ = tch::no_grad(|| parameters.trainable.narrow(0, start, segment.length).fill_(mark as f64));
            start += segment.length;
        }
        assert_eq!([start], parameters.trainable.size()[..]);
        for parameter in list.iter().filter(|parameter| parameter.role == Role::Parameter) {
            let name = &parameter.name;
            let marks = to_array(parameters.view(name).unwrap());
            let mark = *marks.first().unwrap();
            assert!(marks.iter().all(|other| *other == mark), "{name}");
            let segment = parameters.segments[mark as usize];
            let norm = name.contains("bn") || name.contains("downsample.1");
            assert_eq!(segment.decays, name.ends_with(".weight") && !norm, "{name}");
            let backbone = ["conv1.", "bn1.", "layer"].iter().any(|start| name.starts_with(start));
            assert_eq!(segment.backbone, backbone, "{name}");
        }
    }
}
