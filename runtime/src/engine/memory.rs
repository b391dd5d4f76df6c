//! Where inputs and outputs lie when a GPU computes: in pinned memory, pages of the host that the GPU copies from and to by
//! itself. <https://onnxruntime.ai/docs/performance/device-tensor.html>

use ndarray::{ArrayView3, Ix4, s};
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, Session};
use ort::value::{DynTensorValueType, DynValue, Tensor};

use super::IMAGES;

/// A device and the memory of the host that it reaches.
#[derive(Clone, Debug)]
pub(super) struct Place {
    device: AllocationDevice<'static>,
    id: i32,
    host: AllocationDevice<'static>,
    host_id: i32,
    /// What the memory of the host is to be for inputs and for outputs.
    kinds: [MemoryType; 2],
}

impl Place {
    /// The NVIDIA GPU that a session computes on.
    pub(super) fn cuda(device: u16, session: &Session) -> Self {
        let kinds = [MemoryType::CPUInput, MemoryType::CPUOutput];
        let (id, host) = (device.into(), AllocationDevice::CUDA_PINNED);
        let place = Self { device: AllocationDevice::CUDA, id, host, host_id: id, kinds };
        // In some versions of ONNX Runtime each GPU has pinned memory, in others the first has it for all.
        match place.host(kinds[0]).and_then(|memory| Allocator::new(session, memory)) {
            Ok(_) => place,
            Err(_) => Self { host_id: 0, ..place },
        }
    }

    fn device(&self) -> ort::Result<MemoryInfo<'static>> {
        MemoryInfo::new(self.device.clone(), self.id, AllocatorType::Device, MemoryType::Default)
    }

    fn host(&self, kind: MemoryType) -> ort::Result<MemoryInfo<'static>> {
        MemoryInfo::new(self.host.clone(), self.host_id, AllocatorType::Device, kind)
    }
}

/// The memory of a session's runs.
#[derive(Debug)]
pub(super) struct Memory {
    place: Place,
    /// The host's memory for inputs of the shape that came last.
    images: Option<Tensor<f32>>,
    /// If runs are replayed, what they read and write.
    replayed: Option<Replayed>,
    replay: bool,
}

/// Inputs and outputs on the device, which every run finds at the same addresses.
#[derive(Debug)]
struct Replayed {
    images: Tensor<f32>,
    binding: IoBinding,
}

impl Memory {
    /// The memory of a session there. With `replay`, all inputs must have one shape, and the runs of a CUDA graph can be replayed.
    pub(super) fn new(place: Place, replay: bool) -> Self {
        Self { place, images: None, replayed: None, replay }
    }

    /// Runs on images that make an input of this shape, with zeros for those that are missing. Gives the outputs of these names, in the
    /// host's memory.
    pub(super) fn run(
        &mut self,
        session: &mut Session,
        images: &[ArrayView3<f32>],
        shape: [usize; 4],
        outputs: &[&'static str],
    ) -> ort::Result<Vec<DynValue>> {
        self.fill(session, images, shape)?;
        let Some(input) = &self.images else { return Ok(Vec::new()) };
        if self.replay {
            let replayed = match self.replayed.take() {
                Some(replayed) => replayed,
                None => Replayed::new(session, &self.place, shape, outputs)?,
            };
            return self.replayed.insert(replayed).run(session, input, &self.place, outputs);
        }
        // A binding keeps the memory of its outputs, which belong to the caller here.
        let mut binding = session.create_binding()?;
        binding.bind_input(IMAGES, input)?;
        let host = self.place.host(self.place.kinds[1])?;
        for name in outputs {
            binding.bind_output_to_device(*name, &host)?;
        }
        let mut values = session.run_binding(&binding)?;
        Ok(outputs.iter().filter_map(|name| values.remove(*name)).collect())
    }

    /// Puts the images where the device fetches them.
    fn fill(&mut self, session: &Session, images: &[ArrayView3<f32>], shape: [usize; 4]) -> ort::Result<()> {
        let fits = |input: &Tensor<f32>| input.shape().iter().copied().eq(shape.map(|side| side as i64));
        let input = match self.images.take().filter(fits) {
            Some(input) => input,
            None => Tensor::new(&Allocator::new(session, self.place.host(self.place.kinds[0])?)?, shape)?,
        };
        let input = self.images.insert(input);
        let mut input = input.extract_array_mut().into_dimensionality::<Ix4>().map_err(ort::Error::wrap)?;
        for (mut slot, image) in input.outer_iter_mut().zip(images) {
            slot.assign(image);
        }
        input.slice_mut(s![images.len().., .., .., ..]).fill(0.0);
        Ok(())
    }
}

impl Replayed {
    fn new(session: &Session, place: &Place, shape: [usize; 4], outputs: &[&'static str]) -> ort::Result<Self> {
        let device = place.device()?;
        let images = Tensor::new(&Allocator::new(session, place.device()?)?, shape)?;
        let mut binding = session.create_binding()?;
        binding.bind_input(IMAGES, &images)?;
        for name in outputs {
            binding.bind_output_to_device(*name, &device)?;
        }
        Ok(Self { images, binding })
    }

    fn run(
        &mut self,
        session: &mut Session,
        images: &Tensor<f32>,
        place: &Place,
        outputs: &[&'static str],
    ) -> ort::Result<Vec<DynValue>> {
        images.copy_into(&mut self.images)?;
        let mut values = session.run_binding(&self.binding)?;
        let values = outputs.iter().filter_map(|name| values.remove(*name));
        let copied = values.map(|value| {
            let value = value.downcast::<DynTensorValueType>()?;
            Ok(value.to(place.host.clone(), place.host_id)?.into_dyn())
        });
        copied.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use models::{ModelSpec, Provenance, parameters};
    use ndarray::{Array3, Array4, ArrayD, Axis, IxDyn};
    use ort::value::TensorRef;

    use super::*;
    use crate::engine::outputs::DenseOutputs;
    use crate::engine::{EngineOptions, Fallback, session};

    /// The CPU's memory in place of a GPU's: the same calls, and the same outputs.
    fn host() -> Place {
        let kinds = [MemoryType::Default; 2];
        Place { device: AllocationDevice::CPU, id: 0, host: AllocationDevice::CPU, host_id: 0, kinds }
    }

    fn open() -> Session {
        let mut spec = ModelSpec::preset("resnet18").unwrap();
        spec.classes = vec![models::spec::Class { id: 0, name: "cat".to_owned() }];
        let tensors: BTreeMap<_, _> = parameters(&spec)
            .unwrap()
            .into_iter()
            .map(|parameter| {
                let value = |at: usize| (at % 13) as f32 * 0.01 - 0.04;
                let count = parameter.shape.iter().product();
                let values = (0..count).map(|at| if parameter.name.contains("running_var") { 1.0 } else { value(at) });
                let tensor = ArrayD::from_shape_vec(IxDyn(&parameter.shape), values.collect()).unwrap();
                (parameter.name, tensor)
            })
            .collect();
        let model = exporter::to_onnx(&spec, tensors, &Provenance::default()).unwrap();
        session("a test", &EngineOptions::default(), Fallback::Refused, |builder| builder.commit_from_memory(&model))
            .unwrap()
    }

    fn images(count: usize, side: usize) -> Vec<Array3<f32>> {
        (0..count)
            .map(|n| Array3::from_shape_fn((3, side, side), |(c, y, x)| ((n + 3 * c + y * x) % 7) as f32 - 3.0))
            .collect()
    }

    /// What the session computes without memory of its own: the outputs, one after the other.
    fn expected(session: &mut Session, images: &[Array3<f32>], batch: usize) -> Vec<Vec<f32>> {
        let (_, height, width) = images[0].dim();
        let mut input = Array4::zeros((batch, 3, height, width));
        input.axis_iter_mut(Axis(0)).zip(images).for_each(|(mut slot, image)| slot.assign(image));
        let outputs = session.run(ort::inputs![IMAGES => TensorRef::from_array_view(&input).unwrap()]).unwrap();
        DenseOutputs::NAMES.map(|name| outputs[name].try_extract_tensor::<f32>().unwrap().1.to_vec()).to_vec()
    }

    fn found(memory: &mut Memory, session: &mut Session, images: &[Array3<f32>], batch: usize) -> Vec<DynValue> {
        let (channels, height, width) = images[0].dim();
        let views: Vec<_> = images.iter().map(|image| image.view()).collect();
        memory.run(session, &views, [batch, channels, height, width], &DenseOutputs::NAMES).unwrap()
    }

    fn values(outputs: &[DynValue]) -> Vec<Vec<f32>> {
        outputs.iter().map(|output| output.try_extract_tensor::<f32>().unwrap().1.to_vec()).collect()
    }

    #[test]
    fn memory_of_its_own_changes_no_output_whatever_came_before() {
        let mut session = open();
        let mut memory = Memory::new(host(), false);
        let mut earlier: Option<(Vec<DynValue>, Vec<Vec<f32>>)> = None;
        for (count, batch, side) in [(2, 2, 64), (1, 2, 64), (1, 1, 96), (3, 3, 32)] {
            let images = images(count, side);
            let expected = expected(&mut session, &images, batch);
            let found = found(&mut memory, &mut session, &images, batch);
            assert_eq!(values(&found), expected, "{count} of {batch}, {side}");
            // The outputs of the run before are still what they were.
            if let Some((outputs, expected)) = earlier.replace((found, expected)) {
                assert_eq!(values(&outputs), expected);
            }
        }
    }

    #[test]
    fn what_is_replayed_computes_the_same() {
        let mut session = open();
        let mut memory = Memory::new(host(), true);
        let mut outputs = Vec::new();
        for count in [2, 1, 2] {
            let mut images = images(count, 64);
            images[0] *= count as f32;
            let expected = expected(&mut session, &images, 2);
            outputs.push((found(&mut memory, &mut session, &images, 2), expected));
        }
        for (found, expected) in outputs {
            assert_eq!(values(&found), expected);
        }
    }
}
