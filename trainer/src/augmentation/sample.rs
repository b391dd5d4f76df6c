//! A training sample before preprocessing.

use std::sync::Arc;

use image::RgbImage;

use crate::targets::Object;

/// An image and its objects, with boxes in pixels of this image. Augmentation may have changed both.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The image. The cache may share it, so it is copied before it is modified.
    pub pixels: Arc<RgbImage>,
    /// The objects.
    pub objects: Vec<Object>,
}
