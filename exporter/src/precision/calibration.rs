//! Calibration: which numbers flow through the network when it looks at pictures.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use models::dataset::{OnProblem, Source};
use models::{ModelSpec, RgbView, preprocess};
use ndarray::{Array4, Axis};
use runtime::inputs::{InputError, expand};
use runtime::progress::Progress;
use runtime::{EngineError, EngineOptions, IMAGES, Tap, data, picture};

use super::range::Histogram;
use crate::graph::Graph;
use crate::model::encode_tapped;

/// Why pictures can't be looked at.
#[derive(Debug, thiserror::Error)]
pub enum CalibrationError {
    /// No pictures are named by `--calibrate`.
    #[error("cannot calibrate with `{}`: {reason}; name a folder of pictures or a data set", path.display())]
    Data {
        /// What was named.
        path: PathBuf,
        /// Why it stands for no pictures.
        reason: String,
    },
    /// A picture can't be read.
    #[error("cannot calibrate with `{}`: {reason}; take it away, or name other pictures", path.display())]
    Picture {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// ONNX Runtime fails.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A value of the network is infinite or no number.
    #[error("`{value}` is not finite; the weights are broken: export another checkpoint of the run")]
    NotFinite {
        /// Its name.
        value: String,
    },
}

/// The pictures to look at, evenly taken from `data`: a folder of pictures, a picture, or a data set, whose file names
/// start from `pictures`. At most `most` of them.
///
/// # Errors
/// When `data` stands for no pictures.
pub fn pictures(data: &Path, pictures: Option<&Path>, most: usize) -> Result<Vec<PathBuf>, CalibrationError> {
    let error = |reason: String| CalibrationError::Data { path: data.to_owned(), reason };
    let is_picture = |path: &Path| {
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        picture::EXTENSIONS.iter().any(|known| extension == *known)
    };
    let listed = if data.is_dir() || is_picture(data) { expand(&[data], false) } else { Ok(Vec::new()) };
    let mut files = match listed {
        Ok(files) => files,
        // A folder of annotations.
        Err(InputError::Empty { .. }) => Vec::new(),
        Err(reason) => return Err(error(reason.to_string())),
    };
    if files.is_empty() {
        let source = Source { pictures: pictures.map(Path::to_owned), ..Source::new(data) };
        let (dataset, _) = data::read(&source, OnProblem::Keep).map_err(|reason| error(reason.to_string()))?;
        files = (0..dataset.images.len()).map(|image| dataset.path_of(image)).collect();
    }
    if files.is_empty() {
        return Err(error("it has no pictures".to_owned()));
    }
    let count = files.len();
    Ok((0..count.min(most)).map(|index| files[index * count / count.min(most)].clone()).collect())
}

/// What the network looks at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inputs<'a> {
    /// The checkpoint's probe, if it counts.
    pub(crate) probe: Option<&'a Array4<f32>>,
    /// Pictures, as the spec prepares them.
    pub(crate) pictures: &'a [PathBuf],
    /// How it prepares them.
    pub(crate) spec: &'a ModelSpec,
}

impl<'a> Inputs<'a> {
    /// One after another, `[N, 3, H, W]`.
    pub(crate) fn each(self) -> impl Iterator<Item = Result<Array4<f32>, CalibrationError>> + 'a {
        let probe = self.probe.map(|images| Ok(images.clone()));
        probe.into_iter().chain(self.pictures.iter().map(move |path| input(path, self.spec)))
    }

    /// How many there are.
    pub(crate) fn count(self) -> usize {
        usize::from(self.probe.is_some()) + self.pictures.len()
    }
}

fn input(path: &Path, spec: &ModelSpec) -> Result<Array4<f32>, CalibrationError> {
    let error = |reason: String| CalibrationError::Picture { path: path.to_owned(), reason };
    let picture = picture::read(path).map_err(|problem| error(problem.reason.to_string()))?;
    let view = RgbView::new(picture.width(), picture.height(), picture.as_raw());
    let view = view.map_err(|problem| error(problem.to_string()))?;
    Ok(preprocess(view, &spec.preprocessing).pixels.insert_axis(Axis(0)))
}

/// Counts the numbers of `values` while the network looks at `inputs`.
pub(super) fn measure(
    graph: &Graph,
    values: &BTreeSet<&str>,
    inputs: Inputs,
    engine: &EngineOptions,
) -> Result<BTreeMap<String, Histogram>, CalibrationError> {
    let mut tap = Tap::from_bytes("the network", &encode_tapped(graph.clone(), values), engine)?;
    let mut histograms: BTreeMap<String, Histogram> = BTreeMap::new();
    let mut progress = Progress::new(Some(inputs.count()), false);
    for images in inputs.each() {
        let images = images?;
        let mut add = |name: &str, numbers: &[f32]| histograms.entry(name.to_owned()).or_default().add(numbers);
        if values.contains(IMAGES) {
            add(IMAGES, images.as_slice().unwrap_or_default());
        }
        tap.read(images.view(), add)?;
        progress.advance();
    }
    match histograms.iter().find(|(_, histogram)| !histogram.seen().reach().is_finite()) {
        Some((value, _)) => Err(CalibrationError::NotFinite { value: value.clone() }),
        None => Ok(histograms),
    }
}
