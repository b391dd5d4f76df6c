//! Input and output buffers for GPUs: pinned host memory, which the GPU copies from and to directly.
//! <https://onnxruntime.ai/docs/performance/device-tensor.html>

use std::fmt::Debug;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use models::onnx_contract::{IMAGES, SIZES};
use ndarray::{ArrayView3, Ix4, LinalgScalar, s};
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, Session};
use ort::value::{DynTensorValueType, DynValue, PrimitiveTensorElementType, Tensor};

/// The run in which ONNX Runtime captures a CUDA graph; the ones before allocate what it needs.
pub(crate) const CAPTURE_RUN: usize = 3;

/// What another thread does on the GPU while a graph is captured, such as allocating memory, fails, and so does the capture:
/// it excludes everything else. <https://github.com/microsoft/onnxruntime/issues/18806>
static CAPTURE: RwLock<()> = RwLock::new(());

/// While this lives, no CUDA graph is captured. A thread must not hold two: it would wait for a capture that waits for it.
pub(crate) fn without_capture() -> RwLockReadGuard<'static, ()> {
    CAPTURE.read().unwrap_or_else(PoisonError::into_inner)
}

/// A device's memory, and the host memory that the device can access.
#[derive(Clone, Debug)]
pub(super) struct MemoryLocations {
    device: AllocationDevice<'static>,
    id: i32,
    host: AllocationDevice<'static>,
    host_id: i32,
    /// Types of the host memory for inputs and for outputs.
    host_types: [MemoryType; 2],
}

impl MemoryLocations {
    /// The NVIDIA GPU that a session computes on.
    pub(super) fn cuda(device: u16, session: &Session) -> Self {
        let host_types = [MemoryType::CPUInput, MemoryType::CPUOutput];
        let (id, host) = (device.into(), AllocationDevice::CUDA_PINNED);
        let locations = Self { device: AllocationDevice::CUDA, id, host, host_id: id, host_types };
        // Some versions of ONNX Runtime have pinned memory per GPU, others only under the first GPU's id.
        match locations.host(host_types[0]).and_then(|memory| Allocator::new(session, memory)) {
            Ok(_) => locations,
            Err(_) => Self { host_id: 0, ..locations },
        }
    }

    fn device(&self) -> ort::Result<MemoryInfo<'static>> {
        MemoryInfo::new(self.device.clone(), self.id, AllocatorType::Device, MemoryType::Default)
    }

    fn host(&self, memory_type: MemoryType) -> ort::Result<MemoryInfo<'static>> {
        MemoryInfo::new(self.host.clone(), self.host_id, AllocatorType::Device, memory_type)
    }

    /// Copies the images to a host buffer of this shape, `buffer` if that has it, and fills the rest with zeros.
    fn fill<T: PrimitiveTensorElementType + Debug + LinalgScalar>(
        &self,
        buffer: Option<Tensor<T>>,
        session: &Session,
        images: &[ArrayView3<T>],
        shape: [usize; 4],
    ) -> ort::Result<Tensor<T>> {
        let fits = |input: &Tensor<T>| input.shape().iter().copied().eq(shape.map(|side| side as i64));
        let mut buffer = match buffer.filter(fits) {
            Some(buffer) => buffer,
            None => Tensor::new(&Allocator::new(session, self.host(self.host_types[0])?)?, shape)?,
        };
        let mut input = buffer.extract_array_mut().into_dimensionality::<Ix4>().map_err(ort::Error::wrap)?;
        for (mut slot, image) in input.outer_iter_mut().zip(images) {
            slot.assign(image);
        }
        input.slice_mut(s![images.len().., .., .., ..]).fill(T::zero());
        Ok(buffer)
    }
}

/// Input and output buffers of a session.
#[derive(Debug)]
pub(super) struct IoBuffers {
    locations: MemoryLocations,
    /// Host buffers of the last input's shape: floats or bytes.
    floats: Option<Tensor<f32>>,
    bytes: Option<Tensor<u8>>,
    /// Buffers of the CUDA graph, once it is recorded.
    graph: Option<GraphBuffers>,
    use_cuda_graph: bool,
}

/// Inputs and outputs on the device, at the same addresses in every run.
#[derive(Debug)]
struct GraphBuffers {
    images: Tensor<f32>,
    binding: IoBinding,
    /// Runs so far.
    runs: usize,
}

impl IoBuffers {
    /// Buffers in these locations. With `use_cuda_graph`, all inputs must have the same shape.
    pub(super) fn new(locations: MemoryLocations, use_cuda_graph: bool) -> Self {
        Self { locations, floats: None, bytes: None, graph: None, use_cuda_graph }
    }

    /// Runs the network on a batch of this shape: the images, floats or bytes, padded with zeros, and their sizes if it reads
    /// them. Returns the outputs with these names, in host memory.
    pub(super) fn run(
        &mut self,
        session: &mut Session,
        (floats, bytes): (&[ArrayView3<f32>], &[ArrayView3<u8>]),
        sizes: Option<&Tensor<i64>>,
        shape: [usize; 4],
        outputs: &[&'static str],
    ) -> ort::Result<Vec<DynValue>> {
        let captures = self.use_cuda_graph && self.graph.as_ref().is_none_or(|graph| graph.runs < CAPTURE_RUN);
        let _alone = captures.then(|| CAPTURE.write().unwrap_or_else(PoisonError::into_inner));
        let _with_others = (!captures).then(without_capture);
        if bytes.is_empty() {
            self.floats = Some(self.locations.fill(self.floats.take(), session, floats, shape)?);
        } else {
            self.bytes = Some(self.locations.fill(self.bytes.take(), session, bytes, shape)?);
        }
        if let (true, Some(input)) = (self.use_cuda_graph, &self.floats) {
            let graph = match self.graph.take() {
                Some(graph) => graph,
                None => GraphBuffers::new(session, &self.locations, shape, outputs)?,
            };
            return self.graph.insert(graph).run(session, input, &self.locations, outputs);
        }
        // A new binding for every run, because a binding owns its outputs and here they are returned to the caller.
        let mut binding = session.create_binding()?;
        match (&self.floats, &self.bytes) {
            (_, Some(input)) => binding.bind_input(IMAGES, input)?,
            (Some(input), None) => binding.bind_input(IMAGES, input)?,
            (None, None) => {}
        }
        if let Some(sizes) = sizes {
            binding.bind_input(SIZES, sizes)?;
        }
        let host = self.locations.host(self.locations.host_types[1])?;
        for name in outputs {
            binding.bind_output_to_device(*name, &host)?;
        }
        let mut values = session.run_binding(&binding)?;
        Ok(outputs.iter().filter_map(|name| values.remove(*name)).collect())
    }
}

impl GraphBuffers {
    fn new(
        session: &Session,
        locations: &MemoryLocations,
        shape: [usize; 4],
        outputs: &[&'static str],
    ) -> ort::Result<Self> {
        let device = locations.device()?;
        let images = Tensor::new(&Allocator::new(session, locations.device()?)?, shape)?;
        let mut binding = session.create_binding()?;
        binding.bind_input(IMAGES, &images)?;
        for name in outputs {
            binding.bind_output_to_device(*name, &device)?;
        }
        Ok(Self { images, binding, runs: 0 })
    }

    fn run(
        &mut self,
        session: &mut Session,
        images: &Tensor<f32>,
        locations: &MemoryLocations,
        outputs: &[&'static str],
    ) -> ort::Result<Vec<DynValue>> {
        images.copy_into(&mut self.images)?;
        let mut values = session.run_binding(&self.binding)?;
        self.runs += 1;
        let values = outputs.iter().filter_map(|name| values.remove(*name));
        let copied = values.map(|value| {
            let value = value.downcast::<DynTensorValueType>()?;
            Ok(value.to(locations.host.clone(), locations.host_id)?.into_dyn())
        });
        copied.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::thread;
    use std::time::Duration;

    use ndarray::{Array3, Array4, Axis};
    use ort::session::builder::SessionBuilder;
    use ort::value::TensorRef;

    use super::*;
    use crate::engine::outputs::DenseOutputs;
    use crate::engine::{EngineOptions, Fallback, session};
    use crate::tests::model;

    /// Held by tests that capture: a capture that waits keeps others from running.
    static CAPTURES: Mutex<()> = Mutex::new(());

    /// CPU memory instead of a GPU's: the same calls and the same outputs.
    fn cpu_locations() -> MemoryLocations {
        let host_types = [MemoryType::Default; 2];
        MemoryLocations { device: AllocationDevice::CPU, id: 0, host: AllocationDevice::CPU, host_id: 0, host_types }
    }

    fn open() -> Session {
        let commit = |builder: &mut SessionBuilder| builder.commit_from_memory(&model());
        session("a test", &EngineOptions::default(), Fallback::Forbidden, commit).unwrap()
    }

    fn images(count: usize, side: usize) -> Vec<Array3<f32>> {
        (0..count)
            .map(|n| Array3::from_shape_fn((3, side, side), |(c, y, x)| ((n + 3 * c + y * x) % 7) as f32 - 3.0))
            .collect()
    }

    /// The values of each output as the session computes them without `IoBuffers`.
    fn expected(session: &mut Session, images: &[Array3<f32>], batch: usize) -> Vec<Vec<f32>> {
        let (_, height, width) = images[0].dim();
        let mut input = Array4::zeros((batch, 3, height, width));
        input.axis_iter_mut(Axis(0)).zip(images).for_each(|(mut slot, image)| slot.assign(image));
        let outputs = session.run(ort::inputs![IMAGES => TensorRef::from_array_view(&input).unwrap()]).unwrap();
        DenseOutputs::NAMES.map(|name| outputs[name].try_extract_tensor::<f32>().unwrap().1.to_vec()).to_vec()
    }

    fn run(buffers: &mut IoBuffers, session: &mut Session, images: &[Array3<f32>], batch: usize) -> Vec<DynValue> {
        let (channels, height, width) = images[0].dim();
        let views: Vec<_> = images.iter().map(|image| image.view()).collect();
        buffers.run(session, (&views, &[]), None, [batch, channels, height, width], &DenseOutputs::NAMES).unwrap()
    }

    fn values(outputs: &[DynValue]) -> Vec<Vec<f32>> {
        outputs.iter().map(|output| output.try_extract_tensor::<f32>().unwrap().1.to_vec()).collect()
    }

    #[test]
    fn buffers_do_not_change_outputs_whatever_shapes_ran_before() {
        let mut session = open();
        let mut buffers = IoBuffers::new(cpu_locations(), false);
        let mut earlier: Option<(Vec<DynValue>, Vec<Vec<f32>>)> = None;
        for (count, batch, side) in [(2, 2, 64), (1, 2, 64), (1, 1, 96), (3, 3, 32)] {
            let images = images(count, side);
            let expected = expected(&mut session, &images, batch);
            let found = run(&mut buffers, &mut session, &images, batch);
            assert_eq!(values(&found), expected, "{count} of {batch}, {side}");
            // The outputs of the previous run have not changed.
            if let Some((outputs, expected)) = earlier.replace((found, expected)) {
                assert_eq!(values(&outputs), expected);
            }
        }
    }

    #[test]
    fn a_capture_waits_for_others_on_the_gpu_and_replays_do_not() {
        let _captures = CAPTURES.lock().unwrap_or_else(PoisonError::into_inner);
        let (images, done) = (images(1, 64), AtomicUsize::new(0));
        let (mut session, mut buffers) = (open(), IoBuffers::new(cpu_locations(), true));
        thread::scope(|scope| {
            let other = without_capture();
            let capture = scope.spawn(|| {
                for _ in 0..CAPTURE_RUN {
                    run(&mut buffers, &mut session, &images, 1);
                    done.fetch_add(1, SeqCst);
                }
            });
            thread::sleep(Duration::from_millis(100));
            assert_eq!(done.load(SeqCst), 0);
            drop(other);
            capture.join().unwrap();
        });
        let _other = without_capture();
        run(&mut buffers, &mut session, &images, 1);
    }

    #[test]
    fn replayed_runs_compute_the_same_outputs() {
        let _captures = CAPTURES.lock().unwrap_or_else(PoisonError::into_inner);
        let mut session = open();
        let mut buffers = IoBuffers::new(cpu_locations(), true);
        let mut outputs = Vec::new();
        for count in [2, 1, 2] {
            let mut images = images(count, 64);
            images[0] *= count as f32;
            let expected = expected(&mut session, &images, 2);
            outputs.push((run(&mut buffers, &mut session, &images, 2), expected));
        }
        for (found, expected) in outputs {
            assert_eq!(values(&found), expected);
        }
    }
}
