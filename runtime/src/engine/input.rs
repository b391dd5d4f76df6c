//! Inputs of the network.

use models::onnx_contract::SIDE_MULTIPLE;
use ndarray::{Array2, Array3, Array4, ArrayView3, Axis, CowArray, Ix3, Ix4, LinalgScalar};

/// An image as input of the network: in the upper left corner, the rest is padding.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    /// The image and the padding. Height and width are multiples of 32.
    pub pixels: Pixels<'a>,
    /// Height and width of the part that contains the image.
    pub valid: [usize; 2],
}

/// Pixels of an input.
#[derive(Clone, Debug)]
pub enum Pixels<'a> {
    /// `[3, H, W]`, normalized; zero in the padding.
    Float(CowArray<'a, f32, Ix3>),
    /// `[H, W, 3]`, RGB; the network normalizes them. What is in the padding does not matter.
    Bytes(CowArray<'a, u8, Ix3>),
}

/// Type of an input's pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PixelType {
    /// [`Pixels::Float`].
    Float,
    /// [`Pixels::Bytes`].
    Bytes,
}

impl Input<'_> {
    /// Height and width, with padding.
    pub fn size(&self) -> [usize; 2] {
        match &self.pixels {
            Pixels::Float(pixels) => [pixels.dim().1, pixels.dim().2],
            Pixels::Bytes(pixels) => [pixels.dim().0, pixels.dim().1],
        }
    }

    /// Shape of a batch of such inputs, `[N, 3, H, W]` or `[N, H, W, 3]`.
    pub(super) fn batch_shape(&self, batch: usize) -> [usize; 4] {
        let (a, b, c) = match &self.pixels {
            Pixels::Float(pixels) => pixels.dim(),
            Pixels::Bytes(pixels) => pixels.dim(),
        };
        [batch, a, b, c]
    }

    /// Whether there are three channels, and height and width are positive multiples of 32.
    pub(super) fn is_valid(&self) -> bool {
        let channels = match &self.pixels {
            Pixels::Float(pixels) => pixels.dim().0,
            Pixels::Bytes(pixels) => pixels.dim().2,
        };
        channels == 3 && self.size().iter().all(|side| *side > 0 && side.is_multiple_of(SIDE_MULTIPLE))
    }

    /// Type of the pixels.
    pub fn pixel_type(&self) -> PixelType {
        match &self.pixels {
            Pixels::Float(_) => PixelType::Float,
            Pixels::Bytes(_) => PixelType::Bytes,
        }
    }

    /// The pixels, if they are floats.
    pub(super) fn floats(&self) -> Option<ArrayView3<'_, f32>> {
        match &self.pixels {
            Pixels::Float(pixels) => Some(pixels.view()),
            Pixels::Bytes(_) => None,
        }
    }

    /// The pixels, if they are bytes.
    pub(super) fn bytes(&self) -> Option<ArrayView3<'_, u8>> {
        match &self.pixels {
            Pixels::Float(_) => None,
            Pixels::Bytes(pixels) => Some(pixels.view()),
        }
    }
}

impl<'a> From<ArrayView3<'a, f32>> for Input<'a> {
    /// A normalized image without padding, `[3, H, W]`.
    fn from(pixels: ArrayView3<'a, f32>) -> Self {
        Self { valid: [pixels.dim().1, pixels.dim().2], pixels: Pixels::Float(pixels.into()) }
    }
}

impl From<Array3<f32>> for Input<'_> {
    /// A normalized image without padding, `[3, H, W]`.
    fn from(pixels: Array3<f32>) -> Self {
        Self { valid: [pixels.dim().1, pixels.dim().2], pixels: Pixels::Float(pixels.into()) }
    }
}

/// The images as one array of this shape, padded with zeros. A single image is not copied.
pub(super) fn batch<'a, T: LinalgScalar>(images: &[ArrayView3<'a, T>], shape: [usize; 4]) -> CowArray<'a, T, Ix4> {
    match images {
        [image] if shape[0] == 1 && image.is_standard_layout() => (*image).insert_axis(Axis(0)).into(),
        images => {
            let mut input = Array4::zeros(shape);
            input.outer_iter_mut().zip(images).for_each(|(mut slot, image)| slot.assign(image));
            input.into()
        }
    }
}

/// Heights and widths of the images, `[batch, 2]`; zero for inputs that only fill the batch.
pub(super) fn sizes(inputs: &[&Input], batch: usize) -> Array2<i64> {
    Array2::from_shape_fn((batch, 2), |(index, axis)| inputs.get(index).map_or(0, |input| input.valid[axis] as i64))
}
