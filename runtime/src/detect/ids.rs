//! The image ids of COCO's results, found before an image is worked on.

use std::collections::HashSet;
use std::path::Path;

use runtime::output::{ImageIds, NoImageId};
use runtime::video;

/// The image ids of COCO's results.
#[derive(Clone, Default)]
pub(super) struct Ids {
    /// None if there are no such results.
    known: Option<ImageIds>,
    /// Those of images so far.
    taken: HashSet<i64>,
}

impl Ids {
    pub(super) fn new(known: Option<ImageIds>) -> Self {
        Self { known, taken: HashSet::new() }
    }

    /// Takes that of an image; why results can have none.
    pub(super) fn take(&mut self, file: &Path) -> Result<(), String> {
        let Some(known) = &self.known else { return Ok(()) };
        if video::is_video(file) {
            return Err(NoImageId::Frame.to_string());
        }
        let id = known.of(file).map_err(|reason| reason.to_string())?;
        match self.taken.insert(id) {
            true => Ok(()),
            false => Err(format!(
                "its image id, {id}, is that of an earlier image, and COCO's results cannot tell the two apart"
            )),
        }
    }
}
