//! `trainer check`: statistics and problems of the data, and anchor coverage.

mod gallery;
mod survey;
mod table;

use std::collections::HashSet;
use std::path::PathBuf;

use clap::Args;
use models::coverage::{Suggestion, suggest};
use runtime::output::ReportWriter;
use schemars::JsonSchema;
use serde::Serialize;

use crate::config::TrainConfig;
use crate::loader::{Recipe, images_per_epoch};
use crate::overrides::Overrides;
use crate::progress::warn;
use crate::splits::{Splits, evenly_spaced};
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
#[derive(Serialize, JsonSchema)]
pub(crate) struct CheckReport<'a> {
    train: &'a Survey,
    validation: &'a Survey,
    /// Pairs of a training image and a validation image with identical pixels.
    in_both: Vec<[String; 2]>,
    /// Number of training images in each epoch, with repetitions.
    images_per_epoch: usize,
    /// Why training would not start with this data.
    refusals: &'a [String],
    suggestion: Option<&'a Suggestion>,
}

/// Checks the data, prints the report and draws images. Returns whether training accepts the data.
///
/// # Errors
/// When the configuration or the annotations cannot be read, or an output cannot be written.
pub fn run(args: &CheckArgs) -> anyhow::Result<bool> {
    let writer = ReportWriter::open(args.json.as_deref())?;
    let config = TrainConfig::read(&args.config, args.data.as_deref(), &args.overrides)?;
    let Splits { train, validation, refusals, warnings } = Splits::read(&config, &HashSet::new())?;
    warnings.iter().for_each(|warning| warn(format_args!("{warning}")));
    let spec = config.spec_of(&train.dataset);
    let images_per_epoch = images_per_epoch(&train.repeats);

    let survey = |title, split| Survey::new(title, split, &spec, &config.matching);
    let train_survey = survey("training images", &train);
    let validation_survey = survey("validation images", &validation);
    let train = train.dataset;
    let in_both = train_survey.shared_images(&validation_survey);
    let sampled = evenly_spaced(train.images().len(), MAX_SUGGESTION_IMAGES);
    let suggestion = args.suggest_anchors.then(|| suggest(&train, &sampled, &spec, &config.matching));

    let mut tables = vec![
        table::split("training", &train_survey, Some(images_per_epoch)),
        table::split("validation", &validation_survey, None),
    ];
    tables.extend(table::in_both(&in_both));
    tables.extend(table::refusals(&refusals));
    tables.extend(suggestion.as_ref().map(|found| table::suggestion(found.as_ref(), sampled.len())));
    let suggestion = suggestion.flatten();
    let report = CheckReport {
        train: &train_survey,
        validation: &validation_survey,
        in_both,
        images_per_epoch,
        refusals: &refusals,
        suggestion: suggestion.as_ref(),
    };
    writer.publish(&report, &tables.join("\n\n"))?;

    let accepted = refusals.is_empty() && !train_survey.stops_training() && !validation_survey.stops_training();
    let drawn = evenly_spaced(train.images().len(), args.count);
    let recipe = Recipe::new(&config, train, spec);
    if let Some(folder) = &args.draw {
        gallery::draw_ground_truth(&recipe, &drawn, folder)?;
    }
    if let Some(folder) = &args.draw_augmented {
        gallery::draw_inputs(&recipe, &drawn, config.run.seed, folder)?;
    }
    Ok(accepted)
}
