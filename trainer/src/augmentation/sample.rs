//! An image in the making.

use std::sync::Arc;

use image::RgbImage;

use crate::targets::Object;

/// An image and the objects on it, whose boxes are in the image's pixels.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The image, which a cache may hold too: it is copied before it is changed in place.
    pub pixels: Arc<RgbImage>,
    /// The objects.
    pub objects: Vec<Object>,
}
