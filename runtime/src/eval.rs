//! `runtime eval`: COCO metrics of a model on a data set.

use std::path::PathBuf;

use anyhow::Result;
use models::dataset::OnProblem;
use runtime::data::{self, DataArgs, detect_dataset};
use runtime::evaluation_report::{Details, EvaluationReport};
use runtime::output::ReportWriter;

use crate::model_args::ModelArgs;
use crate::rule_args::RuleArgs;
use crate::score::with_notes;
use runtime::progress::Progress;

/// Evaluate a model on a data set: COCO average precision and recall.
#[derive(Debug, clap::Args)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    data: DataArgs,

    #[command(flatten)]
    rules: RuleArgs,

    #[command(flatten)]
    details: Details,

    /// Also write all numbers and the precision-recall curves as JSON; `-` writes them to stdout instead of the tables.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    json: Option<PathBuf>,
}

/// Runs the model on the data set and prints the metrics.
///
/// # Errors
/// Includes images that cannot be read or differ in size from the ground truth, since metrics without them would not be
/// those of the data set.
pub(crate) fn run(args: EvalArgs) -> Result<()> {
    let writer = ReportWriter::open(args.json.as_deref())?;
    let source = args.data.source();
    let truth = with_notes(&source.annotations, data::read(&source, OnProblem::Keep)?, &args.details);
    let detector = args.model.open(args.rules.rules(None), args.rules.views())?;
    let mut progress = Progress::new(Some(truth.images().len()), false);
    let scored = detect_dataset(&detector, &truth, || progress.advance())?;
    let report = EvaluationReport::new(&truth, &scored, &args.details);
    Ok(writer.publish(&report, &report.to_string())?)
}
