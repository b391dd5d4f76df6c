//! `trainer check`: statistics and problems of the data, and anchor coverage.

mod gallery;
mod survey;
mod table;

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use models::ModelSpec;
use models::coverage::{Suggestion, suggest};
use models::dataset::OnProblem;
use runtime::data;
use runtime::output::ReportWriter;
use serde::Serialize;

use crate::config::TrainConfig;
use crate::loader::Recipe;
use crate::overrides::Overrides;
use crate::splits::{self, evenly_spaced};
use survey::Survey;

/// Maximum number of images that suggested anchors are tested on.
const MAX_SUGGESTION_IMAGES: usize = 500;

/// Check a data set before training: annotations, images, box sizes, anchor coverage.
///
/// Exit code 3 means that training would refuse the data or stop at an image.
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// Configuration with the data and the model.
    #[arg(long, short, help_heading = "Input", default_value = "retinanet.yaml")]
    config: PathBuf,
    /// Folder that relative paths in the configuration are relative to [default: the configuration's folder].
    #[arg(long, help_heading = "Input")]
    data: Option<PathBuf>,
    #[command(flatten)]
    overrides: Overrides,
    /// Also write everything as JSON; `-` writes it to stdout instead of the tables.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    json: Option<PathBuf>,
    /// Suggest anchor sizes and aspect ratios that match more of the training boxes.
    #[arg(long, help_heading = "Output")]
    suggest_anchors: bool,
    /// Write training images into this folder, with their boxes and the five best-matching anchors of each drawn on them.
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    draw: Option<PathBuf>,
    /// Write training images into this folder as the network sees them: augmented and resized.
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    draw_augmented: Option<PathBuf>,
    /// Number of images to draw, taken evenly from the data.
    #[arg(long, help_heading = "Output", default_value_t = 20, value_name = "N")]
    count: usize,
}

/// The report. Its field names are JSON keys.
#[derive(Serialize)]
struct CheckReport<'a> {
    train: &'a Survey,
    validation: &'a Survey,
    /// Pairs of a training image and a validation image with identical pixels.
    in_both: Vec<[String; 2]>,
    suggestion: Option<&'a Suggestion>,
}

/// Checks the data, prints the report and draws images. Returns whether training accepts the data.
///
/// # Errors
/// When the configuration or the annotations cannot be read, or an output cannot be written.
pub fn run(args: &CheckArgs) -> anyhow::Result<bool> {
    let writer = ReportWriter::open(args.json.as_deref())?;
    let config = TrainConfig::read(&args.config, args.data.as_deref(), &args.overrides)?;
    let (mut train, train_report) = data::read(&config.data.train, OnProblem::Drop)?;
    let (mut validation, validation_report) = data::read(&config.data.validation, OnProblem::Keep)?;
    let mismatch = splits::unify_classes(&config.model.classes, &mut train, &mut validation).err();
    let spec = ModelSpec { classes: train.classes.clone(), ..config.model.clone() };

    let survey = |title, dataset, report| Survey::new(title, dataset, report, &spec, &config.matching);
    let train_survey = survey("training images", &train, &train_report);
    let validation_survey = survey("validation images", &validation, &validation_report);
    let in_both = train_survey.shared_images(&validation_survey);
    let sampled = evenly_spaced(train.images.len(), MAX_SUGGESTION_IMAGES);
    let suggestion = args.suggest_anchors.then(|| suggest(&train, &sampled, &spec, &config.matching));

    let mut tables = vec![
        table::split(&format!("training, {}", config.data.train.annotations.display()), &train_survey),
        table::split(&format!("validation, {}", config.data.validation.annotations.display()), &validation_survey),
    ];
    tables.extend(table::differences(mismatch.as_ref(), &in_both));
    tables.extend(suggestion.as_ref().map(|found| table::suggestion(found.as_ref(), sampled.len())));
    let suggestion = suggestion.flatten();
    let report =
        CheckReport { train: &train_survey, validation: &validation_survey, in_both, suggestion: suggestion.as_ref() };
    writer.publish(&report, &tables.join("\n\n"))?;

    let accepted = train_survey.is_accepted(config.data.bad_annotations)
        && validation_survey.is_accepted(config.data.bad_annotations)
        && mismatch.is_none()
        && splits::ensure_learnable(&train, &spec, &config.matching).is_ok();
    let drawn = evenly_spaced(train.images.len(), args.count);
    let recipe = Recipe {
        dataset: train,
        spec,
        matcher: config.matching.clone(),
        normalizer: config.loss.normalizer,
        augmentation: config.augmentation.clone(),
        cache: Arc::default(),
    };
    if let Some(folder) = &args.draw {
        gallery::draw_ground_truth(&recipe, &drawn, folder)?;
    }
    if let Some(folder) = &args.draw_augmented {
        gallery::draw_inputs(&recipe, &drawn, config.run.seed, folder)?;
    }
    Ok(accepted)
}
