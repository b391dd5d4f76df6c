//! `trainer check`: what is in the data, what is wrong with it, and whether the anchors fit it.

mod gallery;
mod survey;
mod table;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, ensure};
use clap::Args;
use models::ModelSpec;
use models::coverage::{Suggestion, suggest};
use models::dataset::{Dataset, OnProblem, Report, Source};
use runtime::output::ReportWriter;
use serde::Serialize;

use crate::config::TrainConfig;
use crate::loader::Recipe;
use survey::Survey;

/// Images that anchors are tried on.
const TRIED: usize = 500;

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

/// All that is reported.
#[derive(Serialize)]
struct Checked<'a> {
    train: &'a Survey,
    validation: &'a Survey,
    /// Pairs of images, one of the training and one of the validation data, that have the same pixels.
    in_both: Vec<[String; 2]>,
    suggestion: Option<&'a Suggestion>,
}

/// Reads, measures, prints and draws. Says whether training could use the data as it is.
///
/// # Errors
/// When the configuration or a file of annotations can't be read, and when something can't be written.
pub fn run(args: &CheckArgs) -> anyhow::Result<bool> {
    let writer = ReportWriter::open(args.json.as_deref())?;
    let config = TrainConfig::read(&args.config, args.data.as_deref())?;
    let (train, train_report) = read(&config.data.train, OnProblem::Drop)?;
    let (validation, validation_report) = read(&config.data.validation, OnProblem::Keep)?;
    ensure!(!train.classes.is_empty(), "the training data lists no classes");
    let listed = Some(config.model.classes.as_slice());
    let foreign = listed.filter(|classes| !classes.is_empty() && *classes != train.classes);
    let spec = ModelSpec { classes: train.classes.clone(), ..config.model.clone() };

    let survey = |title, dataset, report| Survey::new(title, dataset, report, &spec, &config.matching);
    let train_survey = survey("training images", &train, &train_report);
    let validation_survey = survey("validation images", &validation, &validation_report);
    let in_both = train_survey.shared_images(&validation_survey);
    let tried = spread(train.images.len(), TRIED);
    let suggestion = args.suggest_anchors.then(|| suggest(&train, &tried, &spec, &config.matching));

    let mut tables = vec![
        table::part(&format!("training, {}", config.data.train.annotations.display()), &train_survey),
        table::part(&format!("validation, {}", config.data.validation.annotations.display()), &validation_survey),
    ];
    tables.extend(table::differences(foreign, &train, &validation, &in_both));
    tables.extend(suggestion.as_ref().map(|found| table::suggestion(found.as_ref(), tried.len())));
    let suggestion = suggestion.flatten();
    let checked =
        Checked { train: &train_survey, validation: &validation_survey, in_both, suggestion: suggestion.as_ref() };
    writer.publish(&checked, &tables.join("\n\n"))?;

    let sound = train_survey.is_sound(config.data.bad_annotations)
        && validation_survey.is_sound(config.data.bad_annotations)
        && train.classes == validation.classes
        && foreign.is_none();
    let drawn = spread(train.images.len(), args.count);
    let recipe = Recipe {
        dataset: train,
        spec,
        matcher: config.matching.clone(),
        normalizer: config.loss.normalizer,
        augmentation: config.augmentation.clone(),
        cache: Arc::default(),
    };
    if let Some(folder) = &args.draw {
        gallery::draw_truth(&recipe, &drawn, folder)?;
    }
    if let Some(folder) = &args.draw_augmented {
        gallery::draw_inputs(&recipe, &drawn, config.run.seed, folder)?;
    }
    Ok(sound)
}

fn read(source: &Source, on_problem: OnProblem) -> anyhow::Result<(Dataset, Report)> {
    runtime::data::read(source, on_problem).with_context(|| source.annotations.display().to_string())
}

/// At most `count` of `all` places, evenly spread.
fn spread(all: usize, count: usize) -> Vec<usize> {
    let count = count.min(all);
    (0..count).map(|index| index * all / count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_spread_and_none_comes_twice() {
        assert_eq!(spread(10, 5), [0, 2, 4, 6, 8]);
        assert_eq!(spread(3, 20), [0, 1, 2]);
        assert_eq!(spread(0, 20), [0; 0]);
        assert_eq!(spread(20, 0), [0; 0]);
    }
}
