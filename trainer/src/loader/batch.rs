//! A batch, in the CPU's memory and on a device.

use models::Placement;
use models::spec::PreprocessingSpec;
use ndarray::Array4;
use tch::{Device, Kind, Tensor};

use crate::failure::{TorchError, catch};
use crate::targets::{Normalizer, TargetTensors, Targets};
use crate::torch;

/// Network inputs with their training targets.
pub struct Batch {
    /// The images.
    pub images: BatchImages,
    /// Training targets of every anchor.
    pub targets: Targets,
    /// How each image was resized and padded.
    pub placements: Vec<Placement>,
    /// Indices of the images in the data set.
    pub indices: Vec<usize>,
    pinned: Option<Pinned>,
}

/// The images of a batch, zero-padded to the largest input of the batch.
#[derive(Debug, PartialEq)]
pub enum BatchImages {
    /// `[N, 3, H, W]`, normalized.
    Normalized(Array4<f32>),
    /// `[N, H, W, 3]`, resized pixels of a spec with `round_pixels`. The device normalizes them, and sets the padding to zero
    /// afterwards: a quarter of the bytes to copy.
    Bytes(Array4<u8>),
}

impl BatchImages {
    /// Height and width of the inputs.
    pub fn size(&self) -> [usize; 2] {
        match self {
            Self::Normalized(images) => [images.dim().2, images.dim().3],
            Self::Bytes(images) => [images.dim().1, images.dim().2],
        }
    }

    /// Their memory.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Normalized(images) => images.len() * size_of::<f32>(),
            Self::Bytes(images) => images.len(),
        }
    }

    /// A copy.
    fn tensor(&self) -> Tensor {
        match self {
            Self::Normalized(images) => torch::images(images),
            Self::Bytes(images) => torch::images(images),
        }
    }
}

/// Copies in memory from which a GPU reads while the CPU goes on.
struct Pinned {
    images: Tensor,
    targets: Tensor,
}

impl Batch {
    /// A batch in the CPU's memory. Images are in standard layout.
    pub fn new(images: BatchImages, targets: Targets, placements: Vec<Placement>, indices: Vec<usize>) -> Self {
        Self { images, targets, placements, indices, pinned: None }
    }

    /// The divisor of this batch's loss; a divisor of 0 counts as 1.
    pub fn loss_divisor(&self, normalizer: Normalizer) -> usize {
        match normalizer {
            Normalizer::Image => self.indices.len(),
            Normalizer::Batch => self.targets.rows.len(),
        }
    }

    /// Prepares for a copy to this GPU that neither waits for it nor holds it up.
    ///
    /// # Errors
    /// When the system cannot lock as much memory.
    pub(super) fn pin(&mut self, device: Device) -> Result<(), TorchError> {
        // `pin_memory` warns on stderr, for each tensor, that it is given a device.
        let pinned = |tensor: Tensor| tensor.internal_pin_memory(device);
        let pin = || Pinned { images: pinned(self.images.tensor()), targets: pinned(self.targets.packed()) };
        self.pinned = Some(catch(pin)?);
        Ok(())
    }

    /// The images on a device: `[N, 3, H, W]`, normalized as `spec` says, in the channels-last memory format (NHWC) if
    /// `channels_last`. Whether they were bytes changes no bit.
    pub fn images_on(&self, device: Device, channels_last: bool, spec: &PreprocessingSpec) -> Tensor {
        let images = match &self.pinned {
            Some(Pinned { images, .. }) => images.to_device_(device, images.kind(), true, false),
            None => self.images.tensor().to_device(device),
        };
        match self.images {
            BatchImages::Normalized(_) if channels_last => torch::channels_last(&images),
            BatchImages::Normalized(_) => images,
            BatchImages::Bytes(_) => self.normalize(&images.permute([0, 3, 1, 2]), channels_last, spec),
        }
    }

    /// Normalizes bytes, `[N, 3, H, W]` in the channels-last memory format, with the operations of [`models::preprocess`].
    fn normalize(&self, bytes: &Tensor, channels_last: bool, spec: &PreprocessingSpec) -> Tensor {
        let images = if channels_last { bytes.shallow_clone() } else { bytes.contiguous() }.to_kind(Kind::Float);
        let [factor, term] = spec.factor_and_term();
        for (channel, (factor, term)) in (0..).zip(factor.into_iter().zip(term)) {
            // A tensor of all factors would have to be copied to the device.
            let mut plane = images.narrow(1, channel, 1);
            let _ = plane.g_mul_scalar_(f64::from(factor));
            let _ = plane.g_add_scalar_(f64::from(term));
        }
        let [height, width] = self.images.size().map(|side| side as i64);
        for (index, placement) in (0..).zip(&self.placements) {
            let (image, inside) = (images.narrow(0, index, 1), [placement.resized_height, placement.resized_width]);
            let [bottom, right] = inside.map(i64::from);
            let _ = image.narrow(2, bottom, height - bottom).zero_();
            let _ = image.narrow(3, right, width - right).zero_();
        }
        images
    }

    /// The targets on a device.
    pub fn targets_on(&self, device: Device) -> TargetTensors {
        let packed = match &self.pinned {
            Some(Pinned { targets, .. }) => targets.to_device_(device, Kind::Uint8, true, false),
            None => self.targets.packed().to_device(device),
        };
        TargetTensors::unpack(&packed, self.targets.rows.len())
    }
}
