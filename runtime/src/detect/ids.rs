//! Image ids of COCO results, checked before an image is processed.

use std::collections::HashSet;
use std::path::Path;

use runtime::output::{ImageIds, NoImageId};
use runtime::video;

/// The image ids of COCO results, each used at most once.
#[derive(Clone, Default)]
pub(super) struct Ids {
    /// `None` if no COCO results are written.
    known: Option<ImageIds>,
    /// The ids of the images so far.
    taken: HashSet<i64>,
}

impl Ids {
    pub(super) fn new(known: Option<ImageIds>) -> Self {
        Self { known, taken: HashSet::new() }
    }

    /// Reserves the id of an image. The error is the reason why there is none.
    pub(super) fn take(&mut self, file: &Path) -> Result<(), String> {
        let Some(known) = &self.known else { return Ok(()) };
        if video::is_video(file) {
            return Err(NoImageId::Frame.to_string());
        }
        let id = known.of(file).map_err(|reason| reason.to_string())?;
        match self.taken.insert(id) {
            true => Ok(()),
            false => Err(format!(
                "its image id {id} is already used by an earlier image; COCO results need a different id for each image"
            )),
        }
    }
}
