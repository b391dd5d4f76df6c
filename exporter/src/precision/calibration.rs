//! Calibration: ranges of the network's activations on images.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use models::dataset::{OnProblem, Source};
use models::onnx_contract::IMAGES;
use models::spec::PreprocessingSpec;
use models::{ModelSpec, Preprocessed, RgbView, preprocess};
use ndarray::Axis;
use runtime::inputs::{InputError, expand};
use runtime::progress::Progress;
use runtime::{ActivationReader, EngineError, EngineOptions, data, drawn, image_file};

use super::range::Range;
use crate::model::encode_with_outputs;
use crate::onnx::GraphProto;

/// Why activations cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum CalibrationError {
    /// `--calibrate` contains no images, or cannot be read.
    #[error("cannot calibrate with `{}`: {reason}; pass a folder of images or a data set to --calibrate", path.display())]
    Data {
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
}

/// At most `max_count` evenly spaced images of `data`: a folder of images, an image, or a data set, whose file names are
/// relative to `images`.
///
/// # Errors
/// When `data` contains no images or cannot be read.
pub fn images(data: &Path, images: Option<&Path>, max_count: usize) -> Result<Vec<PathBuf>, CalibrationError> {
    let error = |reason: String| CalibrationError::Data { path: data.to_owned(), reason };
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
    let count = files.len();
    Ok((0..count.min(max_count)).map(|index| files[index * count / count.min(max_count)].clone()).collect())
}

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
    pub(crate) fn each(self) -> impl Iterator<Item = Result<Preprocessed, CalibrationError>> + 'a {
        let spec = &self.spec.preprocessing;
        self.files.iter().map(|path| input(path, spec)).chain((0..self.drawn).map(|number| drawn_input(number, spec)))
    }

    /// Number of images.
    pub(crate) fn count(self) -> usize {
        self.files.len() + self.drawn as usize
    }
}

fn input(path: &Path, spec: &PreprocessingSpec) -> Result<Preprocessed, CalibrationError> {
    let error = |reason: String| CalibrationError::Image { path: path.to_owned(), reason };
    let image = image_file::read(path).map_err(|problem| error(problem.reason.to_string()))?;
    let view = RgbView::new(image.width(), image.height(), image.as_raw());
    Ok(preprocess(view.map_err(|problem| error(problem.to_string()))?, spec))
}

fn drawn_input(number: u32, spec: &PreprocessingSpec) -> Result<Preprocessed, CalibrationError> {
    let image = drawn::image(number, DRAWN_WIDTH, DRAWN_HEIGHT);
    let view = RgbView::new(DRAWN_WIDTH, DRAWN_HEIGHT, image.as_raw()).expect("a drawn image has all pixels");
    let (shorter_side, longer_side) = (spec.shorter_side.min(DRAWN_HEIGHT), spec.longer_side.min(DRAWN_WIDTH));
    let spec = PreprocessingSpec { shorter_side, longer_side, fixed_size: None, ..spec.clone() };
    Ok(preprocess(view, &spec))
}

/// Ranges of the activations `values` on `inputs`, by name.
pub(super) fn measure(
    graph: &GraphProto,
    values: &BTreeSet<&str>,
    inputs: Inputs,
    engine: &EngineOptions,
) -> Result<BTreeMap<String, Range>, CalibrationError> {
    let mut reader = ActivationReader::from_bytes("the network", &encode_with_outputs(graph.clone(), values), engine)?;
    let mut ranges: BTreeMap<String, Range> = BTreeMap::new();
    let mut progress = Progress::new(Some(inputs.count()), false);
    for input in inputs.each() {
        let images = input?.pixels.insert_axis(Axis(0));
        let mut add = |name: &str, numbers: &[f32]| ranges.entry(name.to_owned()).or_default().add(numbers);
        if values.contains(IMAGES) {
            add(IMAGES, images.as_slice().unwrap_or_default());
        }
        reader.read(images.view(), add)?;
        progress.advance();
    }
    match ranges.iter().find(|(_, range)| !range.max_abs().is_finite()) {
        Some((value, _)) => Err(CalibrationError::NotFinite { value: value.clone() }),
        None => Ok(ranges),
    }
}
