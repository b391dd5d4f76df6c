//! Images to run a network on: those of `--calibrate`, and drawn ones.

use std::path::{Path, PathBuf};

use models::dataset::{DataError, OnProblem, Source};
use models::spec::PreprocessingSpec;
use models::{ModelSpec, Preprocessed, RgbView, preprocess};
use runtime::data::{self, DetectDatasetError};
use runtime::inputs::{InputError, expand};
use runtime::{DetectorError, EngineError, drawn, image_file};

/// Why a network cannot be measured on images.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// `--calibrate` contains no images, or cannot be read.
    #[error("cannot calibrate with `{}`: {reason}; pass a folder of images or a data set to --calibrate", path.display())]
    Calibration {
        /// The value of `--calibrate`.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// An image cannot be read.
    #[error("cannot calibrate with `{}`: {reason}; remove the file, or pass other images to --calibrate", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// ONNX Runtime fails.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// An activation is infinite or NaN.
    #[error("activation `{value}` is infinite or NaN; the weights are broken: export another checkpoint of the run")]
    NotFinite {
        /// Name of the value.
        value: String,
    },
    /// The data set of `--eval` cannot be read.
    #[error("cannot read the data set")]
    Data(#[from] DataError),
    /// The file cannot be opened to measure its AP.
    #[error("cannot measure the AP")]
    Detector(#[from] DetectorError),
    /// Detection on the data set fails.
    #[error("cannot measure the AP")]
    Detect(#[from] DetectDatasetError),
    /// The data set has no boxes, so its AP is undefined.
    #[error("the data set has no boxes of the model's classes; choose another data set")]
    NoBoxes,
}

/// Called with the number of images that a step has processed, from 1, and the number of all its images.
pub type OnProgress<'a> = &'a mut dyn FnMut(usize, usize);

/// At most `max_count` evenly spaced images of `data`: a folder of images, an image, or a data set, whose file names are
/// relative to `images`.
///
/// # Errors
/// When `data` contains no images or cannot be read.
pub fn images(data: &Path, images: Option<&Path>, max_count: usize) -> Result<Vec<PathBuf>, MeasureError> {
    let error = |reason: String| MeasureError::Calibration { path: data.to_owned(), reason };
    let is_image = |path: &Path| {
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        image_file::EXTENSIONS.iter().any(|known| extension == *known)
    };
    let listed = if data.is_dir() || is_image(data) { expand(&[data], false) } else { Ok(Vec::new()) };
    let mut files = match listed {
        Ok(files) => files,
        // A folder without images may be a data set, such as a folder of annotations.
        Err(InputError::Empty { .. }) => Vec::new(),
        Err(reason) => return Err(error(reason.to_string())),
    };
    if files.is_empty() {
        let source = Source { images: images.map(Path::to_owned), ..Source::new(data) };
        let (dataset, _) = data::read(&source, OnProblem::Keep).map_err(|reason| error(reason.to_string()))?;
        files = (0..dataset.images().len()).map(|image| dataset.path_of(image)).collect();
    }
    if files.is_empty() {
        return Err(error("no images found".to_owned()));
    }
    let count = files.len().min(max_count);
    Ok((0..count).map(|index| files[index * files.len() / count].clone()).collect())
}

/// Number of drawn images: for the ranges of fp16 without calibration images, and for every comparison.
pub(crate) const DRAWN_IMAGES: u32 = 4;

/// Size of a drawn image, in pixels: a network's activations are as large for small images as for large ones.
const DRAWN_WIDTH: u32 = 256;
const DRAWN_HEIGHT: u32 = 192;

/// Images to run the network on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inputs<'a> {
    /// Image files.
    pub(crate) files: &'a [PathBuf],
    /// Number of drawn images that follow them.
    pub(crate) drawn: u32,
    /// Preprocessing of both.
    pub(crate) spec: &'a ModelSpec,
}

impl<'a> Inputs<'a> {
    /// Reads and preprocesses the images, one after another.
    pub(crate) fn each(self) -> impl Iterator<Item = Result<Preprocessed, MeasureError>> + 'a {
        let spec = &self.spec.preprocessing;
        self.files.iter().map(|path| input(path, spec)).chain((0..self.drawn).map(|number| drawn_input(number, spec)))
    }

    /// Number of images.
    pub(crate) fn count(self) -> usize {
        self.files.len() + self.drawn as usize
    }
}

fn input(path: &Path, spec: &PreprocessingSpec) -> Result<Preprocessed, MeasureError> {
    let error = |reason: String| MeasureError::Image { path: path.to_owned(), reason };
    let image = image_file::read(path).map_err(|problem| error(problem.reason.to_string()))?;
    let view = RgbView::new(image.width(), image.height(), image.as_raw());
    Ok(preprocess(view.map_err(|problem| error(problem.to_string()))?, spec))
}

fn drawn_input(number: u32, spec: &PreprocessingSpec) -> Result<Preprocessed, MeasureError> {
    let image = drawn::image(number, DRAWN_WIDTH, DRAWN_HEIGHT);
    let view = RgbView::new(DRAWN_WIDTH, DRAWN_HEIGHT, image.as_raw()).expect("a drawn image has all pixels");
    let (shorter_side, longer_side) = (spec.shorter_side.min(DRAWN_HEIGHT), spec.longer_side.min(DRAWN_WIDTH));
    let spec = PreprocessingSpec { shorter_side, longer_side, fixed_size: None, ..spec.clone() };
    Ok(preprocess(view, &spec))
}
