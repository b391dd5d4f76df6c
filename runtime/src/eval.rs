//! `runtime eval`: COCO's numbers of a model on a data set.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use models::ModelSpec;
use models::dataset::{Dataset, OnProblem, named};
use models::evaluation::ScoredBox;
use runtime::data::{self, DataArgs};
use runtime::evaluation_report::{Details, EvaluationReport};
use runtime::output::{Found, Publication};

use crate::model_args::ModelArgs;
use crate::pipeline::pipeline;
use crate::progress::Progress;
use crate::score::with_notes;

/// Measure a model's average precision on a data set.
#[derive(Debug, clap::Args)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    data: DataArgs,

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
    let source = args.data.source();
    let truth = with_notes(&source.annotations, data::read(&source, OnProblem::Keep)?);
    let detector = args.model.open(None)?;
    let places = class_places(detector.spec(), &truth)?;
    let files: Vec<_> = (0..truth.images.len()).map(|image| truth.path_of(image)).collect();

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
    let report = EvaluationReport::new(&truth, &scored?, &args.details);
    Ok(publication.publish(&report, &report.to_string())?)
}

/// The place in the data set of each of the model's classes. Where ids differ, as between forms of one data set, the name
/// decides.
fn class_places(spec: &ModelSpec, truth: &Dataset) -> Result<Vec<usize>> {
    let places = spec.classes.iter().map(|class| {
        let same = truth.classes.iter().position(|known| known == class);
        let place = same.or_else(|| truth.classes.iter().position(|known| known.name == class.name));
        place.with_context(|| {
            let names: Vec<_> = truth.classes.iter().map(|known| format!("`{}`", known.name)).collect();
            format!(
                "the model's class `{}`, id {}, is none of the data set's, {}; give its own data, or name its classes with \
                 --classes",
                class.name,
                class.id,
                named(&names)
            )
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

#[cfg(test)]
mod tests {
    use models::spec::Class;

    use super::*;

    fn classes(classes: &[(i64, &str)]) -> Vec<Class> {
        classes.iter().map(|(id, name)| Class { id: *id, name: (*name).to_owned() }).collect()
    }

    #[test]
    fn classes_are_matched_by_name_where_ids_differ() {
        let places = |model: &[(i64, &str)], data: &[(i64, &str)]| {
            let spec = ModelSpec { classes: classes(model), ..ModelSpec::default() };
            class_places(&spec, &Dataset { classes: classes(data), ..Dataset::default() })
        };
        assert_eq!(places(&[(1, "dog"), (2, "cat")], &[(0, "cat"), (1, "cow"), (2, "dog")]).unwrap(), [2, 0]);
        assert_eq!(places(&[(2, "dog")], &[(1, "dog"), (2, "dog")]).unwrap(), [1]);
        let error = places(&[(1, "dog")], &[(1, "0"), (2, "1")]).unwrap_err().to_string();
        assert!(error.contains("class `dog`, id 1, is none of the data set's, `0`, `1`;"), "{error}");
    }
}
