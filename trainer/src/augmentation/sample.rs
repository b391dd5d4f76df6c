//! A picture in the making.

use std::sync::Arc;

use image::RgbImage;

use crate::targets::Object;

/// A picture and the objects on it, whose boxes are in the picture's pixels.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The picture, which a cache may hold too: it is copied before it is changed in place.
    pub pixels: Arc<RgbImage>,
    /// The objects.
    pub objects: Vec<Object>,
}
