//! `runtime eval`: COCO's numbers of a model on a data set.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use models::ModelSpec;
use models::dataset::Dataset;
use models::evaluation::ScoredBox;
use runtime::evaluation_report::{Details, EvaluationReport, Publication};
use runtime::output::Found;

use crate::model_args::ModelArgs;
use crate::pipeline::pipeline;
use crate::progress::Progress;
use crate::score::read_truth;

/// Measure a model's average precision on a data set.
#[derive(Debug, clap::Args)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    model: ModelArgs,

    /// Ground truth: COCO JSON.
    #[arg(long, value_name = "COCO.json")]
    data: PathBuf,

    /// Folder that the file names in it start from. [default: the folder of the ground truth]
    #[arg(long, value_name = "DIR")]
    pictures: Option<PathBuf>,

    #[command(flatten)]
    details: Details,

    /// Also write all numbers and the precision-recall curves as JSON to this file; `-` writes them to stdout, in place of
    /// the tables.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs the model over the data set and prints the numbers.
///
/// # Errors
/// When a picture can't be read or is not of the size that the ground truth says: an average precision without it would
/// not be that of the data set.
pub(crate) fn run(args: EvalArgs) -> Result<()> {
    let publication = Publication::open(args.json.as_deref())?;
    let truth = read_truth(&args.data)?;
    let folder = args.pictures.as_deref().or_else(|| args.data.parent()).unwrap_or(Path::new(""));
    let detector = args.model.open(None)?;
    let places = class_places(detector.spec(), &truth)?;
    let files: Vec<_> = truth.images.iter().map(|image| folder.join(&image.file_name)).collect();

    let (_, scored) = pipeline(&files, &detector, false, |finished| {
        let mut progress = Progress::new(files.len(), false);
        let mut scored = Vec::new();
        for (image, finished) in finished.into_iter().enumerate() {
            let found = finished.report.outcome.map_err(anyhow::Error::msg);
            let found = found.with_context(|| files[image].display().to_string())?;
            scored.extend(boxes(&truth, image, &places, &found)?);
            progress.advance();
        }
        anyhow::Ok(scored)
    });
    Ok(publication.publish(&EvaluationReport::new(&truth, &scored?, &args.details))?)
}

/// The place in the data set of each of the model's classes.
fn class_places(spec: &ModelSpec, truth: &Dataset) -> Result<Vec<usize>> {
    let places = spec.classes.iter().map(|class| {
        let place = truth.classes.iter().position(|known| known == class);
        place.with_context(|| {
            format!("the model's class `{}`, id {}, is none of the data set's; give its own data", class.name, class.id)
        })
    });
    places.collect()
}

/// What was found in a picture, as evaluation takes it.
fn boxes(truth: &Dataset, image: usize, places: &[usize], found: &Found) -> Result<Vec<ScoredBox>> {
    let expected = &truth.images[image];
    if (found.width, found.height) != (expected.width, expected.height) {
        bail!(
            "{} is {}x{} upright, but the ground truth says {}x{}",
            expected.file_name,
            found.width,
            found.height,
            expected.width,
            expected.height
        );
    }
    let scored = found.detections.iter().map(|detection| ScoredBox {
        image,
        class: places[detection.label],
        score: detection.score.into(),
        rectangle: detection.bounding_box.into(),
    });
    Ok(scored.collect())
}
