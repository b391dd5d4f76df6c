//! Parts of images.

use image::metadata::Orientation;

/// A part of an image, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Left side.
    pub x: u32,
    /// Top.
    pub y: u32,
    /// Width.
    pub width: u32,
    /// Height.
    pub height: u32,
}

impl Region {
    /// The region of the stored image that this region of the upright image shows. `size` is that of the stored image.
    pub(super) fn stored(self, orientation: Orientation, size: (u32, u32)) -> Self {
        use Orientation::{FlipHorizontal, FlipVertical, Rotate90, Rotate180, Rotate270, Rotate270FlipH};
        let mut stored = match transposes(orientation) {
            true => Self { x: self.y, y: self.x, width: self.height, height: self.width },
            false => self,
        };
        if matches!(orientation, FlipHorizontal | Rotate180 | Rotate270 | Rotate270FlipH) {
            stored.x = size.0 - stored.x - stored.width;
        }
        if matches!(orientation, FlipVertical | Rotate180 | Rotate90 | Rotate270FlipH) {
            stored.y = size.1 - stored.y - stored.height;
        }
        stored
    }
}

/// Whether an orientation swaps width and height.
pub(super) fn transposes(orientation: Orientation) -> bool {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    matches!(orientation, Rotate90 | Rotate90FlipH | Rotate270 | Rotate270FlipH)
}
