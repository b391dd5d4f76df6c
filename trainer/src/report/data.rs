//! What a report shows, as JSON for its page.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use models::dataset::Dataset;
use serde::Serialize;
use serde_json::Value;

use super::detections;
use super::number::short;
use super::results::Results;
use crate::config::TrainConfig;
use crate::differences::values_by_key;
use crate::machine::PROGRAM;
use crate::overrides::Overrides;
use crate::progress::counted;
use crate::run::folder::{CONFIG, checked_images};
use crate::run::log::{self, EpochRecord, Log, StepRecord, ValidationWithinEpoch};
use crate::run::session;
use crate::splits::Splits;

/// Maximum number of points of a curve over the steps. More steps are summarized in groups.
const MAX_POINTS: usize = 2000;

/// Maximum number of damaged lines that are named.
const MAX_NAMED: usize = 5;

/// A report on one or several runs. The field names of this and the other types are the keys that the page reads.
#[derive(Debug, Serialize)]
pub(super) struct ReportData {
    /// This program and its version.
    program: &'static str,
    /// When the report was written, in seconds since 1970.
    written: u64,
    pub(super) runs: Vec<RunReport>,
}

/// One run. Numbers that are missing or not finite are null.
#[derive(Debug, Serialize)]
pub(super) struct RunReport {
    /// The name of its folder.
    pub(super) name: String,
    pub(super) folder: String,
    /// What is damaged or missing.
    pub(super) notes: Vec<String>,
    pub(super) steps: Steps,
    pub(super) epochs: Vec<EpochRecord>,
    /// Those within epochs.
    pub(super) validations: Vec<ValidationWithinEpoch>,
    /// Number of epochs in the configuration.
    pub(super) planned_epochs: Option<u64>,
    /// The configuration file.
    pub(super) config: Option<String>,
    /// Its values by dotted key.
    pub(super) settings: BTreeMap<String, String>,
    /// When, how and where the run was started and resumed.
    pub(super) sessions: Vec<Value>,
    /// When the log was last written, in seconds since 1970.
    updated: Option<u64>,
    /// On the validation data; none before the first validation.
    pub(super) results: Option<Results>,
}

/// The steps of a run, or groups of consecutive steps.
#[derive(Debug, Serialize)]
pub(super) struct Steps {
    /// The last step of each group, from 1.
    pub(super) step: Vec<u64>,
    pub(super) classification_loss: Curve,
    box_loss: Curve,
    gradient_norm: Curve,
    learning_rate: Curve,
}

/// A number of each group of steps, over its finite values.
#[derive(Debug, Serialize)]
pub(super) struct Curve {
    pub(super) mean: Vec<f64>,
    /// None if the groups are single steps.
    pub(super) min: Option<Vec<f64>>,
    pub(super) max: Option<Vec<f64>>,
}

impl ReportData {
    /// Reads what the folders of runs contain.
    ///
    /// # Errors
    /// When there is no folder, or one contains no run.
    pub(super) fn read(folders: &[PathBuf]) -> anyhow::Result<Self> {
        ensure!(!folders.is_empty(), "a report needs a run");
        let mut runs = folders.iter().map(|folder| RunReport::read(folder)).collect::<anyhow::Result<Vec<_>>>()?;
        distinguish(&mut runs);
        Ok(Self { program: PROGRAM, written: seconds(SystemTime::now()).unwrap_or(0), runs })
    }

    /// What is damaged or missing, by run.
    pub(super) fn notes(&self) -> Vec<String> {
        let notes =
            |run: &RunReport| run.notes.iter().map(|note| format!("`{}`: {note}", run.name)).collect::<Vec<_>>();
        self.runs.iter().flat_map(notes).collect()
    }
}

impl RunReport {
    fn read(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join(CONFIG);
        let config = fs::read_to_string(&path);
        if config.is_err() && !folder.join(log::FILE).exists() {
            bail!(
                "`{}` contains no run, neither {CONFIG} nor {}; pass the folder of a run of `trainer fit`",
                folder.display(),
                log::FILE
            );
        }
        let mut notes = Vec::new();
        let mut note = |what: &str, error: anyhow::Error| notes.push(format!("{what}: {error:#}"));
        let log = Log::read(folder).unwrap_or_else(|error| {
            note("no curves", error);
            Log::default()
        });
        let config = config.map_err(|error| note("no configuration", error.into())).ok();
        let values = config.as_deref().map_or(Ok(Value::Null), serde_yaml::from_str::<Value>);
        let values = values.unwrap_or_else(|error| {
            note("the configuration is damaged", error.into());
            Value::Null
        });
        let results = if folder.join(detections::FILE).exists() {
            results(folder, &path).map_err(|error| note("no results", error)).ok()
        } else {
            None
        };
        let (sessions, damaged) = session::read(folder);
        notes.extend(damaged_lines(session::FILE, &damaged));
        notes.extend(damaged_lines(log::FILE, &log.damaged));
        if let Some((_, unknown)) = &results
            && *unknown > 0
        {
            let boxes = counted(*unknown, "detection is", "detections are");
            notes.push(format!("{boxes} left out: the validation data has changed since"));
        }
        let absolute = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        Ok(Self {
            name: absolute.file_name().map_or_else(|| "run".to_owned(), |name| name.to_string_lossy().into_owned()),
            folder: absolute.display().to_string(),
            notes,
            steps: Steps::new(&log.steps),
            epochs: log.epochs,
            validations: log.validations,
            planned_epochs: values["run"]["epochs"].as_u64(),
            config,
            settings: values_by_key(&values).into_iter().map(|(key, value)| (key, text_of(&value))).collect(),
            sessions,
            updated: fs::metadata(folder.join(log::FILE)).and_then(|file| file.modified()).ok().and_then(seconds),
            results: results.map(|(results, _)| results),
        })
    }
}

impl Steps {
    fn new(steps: &[StepRecord]) -> Self {
        let groups: Vec<_> = steps.chunks(steps.len().div_ceil(MAX_POINTS).max(1)).collect();
        let curve = |value: fn(&StepRecord) -> f64| {
            let over = |summary: fn(&[f64]) -> f64| {
                let finite = |group: &&[StepRecord]| {
                    group.iter().map(value).filter(|value| value.is_finite()).collect::<Vec<_>>()
                };
                groups.iter().map(|group| short(summary(&finite(group)))).collect::<Vec<_>>()
            };
            let is_grouped = groups.len() < steps.len();
            Curve {
                mean: over(|values| values.iter().sum::<f64>() / values.len() as f64),
                min: is_grouped.then(|| over(|values| values.iter().copied().fold(f64::NAN, f64::min))),
                max: is_grouped.then(|| over(|values| values.iter().copied().fold(f64::NAN, f64::max))),
            }
        };
        Self {
            step: groups.iter().filter_map(|group| group.last()).map(|record| record.step).collect(),
            classification_loss: curve(|record| record.results.classification_loss),
            box_loss: curve(|record| record.results.box_loss),
            gradient_norm: curve(|record| record.results.gradient_norm),
            learning_rate: curve(|record| record.results.learning_rate),
        }
    }
}

/// The results of a run with the configuration at `config`, and how many detections are of unknown images or classes.
fn results(folder: &Path, config: &Path) -> anyhow::Result<(Results, usize)> {
    let truth = validation_data(folder, config).context("cannot read the validation data")?;
    let located = detections::read(folder, &truth)?;
    Ok((Results::new(&truth, &located.boxes), located.unknown_images.len() + located.unknown_classes.len()))
}

fn validation_data(folder: &Path, config: &Path) -> anyhow::Result<Dataset> {
    let config = TrainConfig::read(config, None, &Overrides::default())?;
    let Splits { validation, refusals, .. } = Splits::read(&config, &checked_images(folder))?;
    ensure!(refusals.is_empty(), "{}", refusals.join("; "));
    Ok(validation.dataset)
}

/// A note on damaged lines, by their numbers.
fn damaged_lines(file: &str, lines: &[usize]) -> Option<String> {
    let named: Vec<_> = lines.iter().take(MAX_NAMED).map(ToString::to_string).collect();
    let more = if lines.len() > MAX_NAMED { format!(" and {} more", lines.len() - MAX_NAMED) } else { String::new() };
    let noun = if lines.len() == 1 { "line" } else { "lines" };
    (!lines.is_empty()).then(|| format!("{file} is damaged; left out {noun} {}{more}", named.join(", ")))
}

/// Appends numbers to equal names, so that the page can tell the runs apart.
fn distinguish(runs: &mut [RunReport]) {
    let names: Vec<_> = runs.iter().map(|run| run.name.clone()).collect();
    for (index, run) in runs.iter_mut().enumerate() {
        let equal = |others: &[String]| others.iter().filter(|name| **name == run.name).count();
        if equal(&names) > 1 {
            run.name = format!("{} ({})", run.name, equal(&names[..=index]));
        }
    }
}

fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn seconds(time: SystemTime) -> Option<u64> {
    time.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}
