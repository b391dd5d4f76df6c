//! Result files: COCO results, and the JSON and NDJSON of `runtime detect`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use models::dataset::Dataset;
use models::evaluation::{CocoResult, LocatedResults, ResultFile, locate};
use runtime::output::{ImageIds, NoImageId};
use runtime::progress::warn;
use serde::Deserialize;

use crate::paths::or_stdin;

/// The content of a result file.
pub(super) enum Results {
    Coco(ResultFile),
    Images(Vec<ImageResult>),
}

/// The object of an image, as `runtime detect` writes it.
#[derive(Deserialize)]
pub(super) struct ImageResult {
    file: PathBuf,
    frame: Option<u64>,
    #[serde(default)]
    detections: Vec<Object>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Object {
    category_id: i64,
    score: f64,
    #[serde(rename = "box")]
    corners: [f64; 4],
}

impl Results {
    /// Reads a file; `-` is stdin, with COCO results.
    pub(super) fn read(path: &Path) -> Result<Self> {
        if !is_of_detect(path) {
            return Ok(Self::Coco(ResultFile::read(or_stdin(path))?));
        }
        let shown = path.display();
        let bytes = fs::read(path).with_context(|| format!("cannot read `{shown}`"))?;
        let images = match bytes.trim_ascii_start().starts_with(b"[") {
            true => serde_json::from_slice(&bytes),
            false => serde_json::Deserializer::from_slice(&bytes).into_iter().collect(),
        };
        images.map(Self::Images).with_context(|| {
            format!("cannot read `{shown}`; a run that was stopped may be continued with --skip-existing")
        })
    }

    /// Resolves images and classes to those of `truth`. Also returns the images that the file is known to contain.
    pub(super) fn locate(self, path: &Path, truth: &Dataset) -> Result<(LocatedResults, BTreeSet<usize>)> {
        let images = match self {
            Self::Images(images) => images,
            Self::Coco(results) => {
                let located = results.locate(truth)?;
                let images = located.boxes.iter().map(|scored| scored.image).collect();
                return Ok((located, images));
            }
        };
        let ids = ImageIds::new(truth.images().iter().map(|image| (image.file_name.clone().into(), image.id)));
        let failed = images.iter().filter(|image| image.error.is_some()).count();
        if failed > 0 {
            warn(format_args!(
                "{failed} of the {} images in `{}` failed; they count as images without detections",
                images.len(),
                path.display()
            ));
        }
        let (mut found, mut results) = (BTreeSet::new(), Vec::new());
        for ImageResult { file, frame, detections, .. } in images {
            let id = if frame.is_some() { Err(NoImageId::Frame) } else { ids.of(&file) };
            let image_id = id.with_context(|| {
                format!("`{}` in `{}` is no image of the ground truth", file.display(), path.display())
            })?;
            // The ids are those of the ground truth, so the search finds them.
            let image = truth.images().binary_search_by_key(&image_id, |image| image.id);
            if image.is_ok_and(|image| !found.insert(image)) {
                bail!("image `{}` is twice in `{}`; keep one of its results", file.display(), path.display());
            }
            results.extend(detections.into_iter().map(|Object { category_id, score, corners: [x1, y1, x2, y2] }| {
                CocoResult { image_id, category_id, bbox: [x1, y1, x2 - x1, y2 - y1], score }
            }));
        }
        Ok((locate(truth, results), found))
    }
}

/// Whether a file begins as those of `runtime detect` do. Pipes, which can be read only once, do not count.
fn is_of_detect(path: &Path) -> bool {
    let start = || {
        let mut start = Vec::new();
        fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
        File::open(path).ok()?.take(1 << 10).read_to_end(&mut start).ok()?;
        Some(start)
    };
    start().is_some_and(|start| {
        let text = start.trim_ascii_start();
        let object = text.strip_prefix(b"[").unwrap_or(text).trim_ascii_start().strip_prefix(b"{");
        object.is_some_and(|object| object.trim_ascii_start().starts_with(b"\"file\""))
    })
}
