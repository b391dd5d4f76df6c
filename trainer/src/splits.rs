//! The two splits of the data, each of one or more data sets, and the judgement of `fit` and `check` about them.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::UNIX_EPOCH;

use anyhow::Context;
use models::coverage::match_objects;
use models::dataset::{Dataset, InvalidDataset, OnProblem, Report, format_list};
use models::spec::Class;
use models::{Matcher, ModelSpec};
use rayon::prelude::*;
use runtime::image_file;
use schemars::JsonSchema;
use serde::Serialize;

use crate::config::{BadAnnotations, DatasetConfig, TrainConfig};
use crate::loader::repeat_factors;
use crate::progress::{Count, counted};

const REMEDY: &str = "fix them, or set `data.bad_annotations: drop`";

/// Images that are searched for a box with a matched anchor.
const MAX_SEARCHED: usize = 1000;

/// The data of a run.
pub(crate) struct Splits {
    pub(crate) train: Split,
    pub(crate) validation: Split,
    /// Why training does not start with this data; empty if it does.
    pub(crate) refusals: Vec<String>,
    /// What a user should know, although training starts.
    pub(crate) warnings: Vec<String>,
}

/// Training or validation data.
pub(crate) struct Split {
    /// The images that can be used, of all data sets. If training accepts the data, it has the classes of the model.
    pub(crate) dataset: Dataset,
    /// The data sets.
    pub(crate) sources: Vec<SourceSummary>,
    /// Problems of the annotations, one sentence per data set and kind.
    pub(crate) problems: Vec<String>,
    /// Whether training refuses these annotations unless `data.bad_annotations` is `drop`.
    pub(crate) has_serious_problems: bool,
    /// Images that are missing or cannot be read.
    pub(crate) unreadable: Vec<Unreadable>,
    /// How often each image is in an epoch, on average.
    pub(crate) repeats: Vec<f64>,
    /// Identifies the image files and their state if all of them can be read.
    pub(crate) fingerprint: Option<u64>,
}

/// A data set of a split. The field names are JSON keys.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub(crate) struct SourceSummary {
    /// The file or folder of annotations.
    pub(crate) annotations: PathBuf,
    pub(crate) images: usize,
    /// Without crowd regions.
    pub(crate) boxes: usize,
    /// How often each of its images is in an epoch.
    pub(crate) repeat: u32,
}

/// An image that is missing or cannot be read.
pub(crate) struct Unreadable {
    pub(crate) file: String,
    pub(crate) reason: String,
}

impl Splits {
    /// Reads both splits and judges them. Image files are not opened again if their fingerprint is among `checked`.
    ///
    /// # Errors
    /// When annotations cannot be read, or a data set has no usable image.
    pub(crate) fn read(config: &TrainConfig, checked: &HashSet<u64>) -> anyhow::Result<Self> {
        let data = &config.data;
        let mut judge = Judge { bad: data.bad_annotations, refusals: Vec::new(), warnings: Vec::new() };
        let mut train = judge.read(&data.train, OnProblem::Drop, checked)?;
        // Evaluation keeps invalid boxes, as pycocotools does, so that its metrics are comparable.
        let mut validation = judge.read(&data.validation, OnProblem::Keep, checked)?;
        judge.refusals.extend(unify_classes(&config.model.classes, &mut train.dataset, &mut validation.dataset));
        if let Some(threshold) = data.repeat_threshold {
            let factors = repeat_factors(&train.dataset, threshold);
            train.repeats.iter_mut().zip(factors).for_each(|(repeat, factor)| *repeat *= factor);
        }
        if !train.dataset.images().is_empty() {
            judge.check_objects(&train.dataset, &config.spec_of(&train.dataset), &config.matching);
        }
        Ok(Self { train, validation, refusals: judge.refusals, warnings: judge.warnings })
    }
}

/// Collects what there is to say about the data.
struct Judge {
    bad: BadAnnotations,
    refusals: Vec<String>,
    warnings: Vec<String>,
}

/// A data set of a split: its annotations are read, but its images may not have been opened yet.
struct ParsedSource<'a> {
    config: &'a DatasetConfig,
    dataset: Dataset,
    report: Report,
    /// Images whose files were opened to measure them.
    measured: HashSet<PathBuf>,
}

impl Judge {
    fn read(
        &mut self,
        configs: &[DatasetConfig],
        on_problem: OnProblem,
        checked: &HashSet<u64>,
    ) -> anyhow::Result<Split> {
        let parsed = configs.iter().map(|config| ParsedSource::read(config, on_problem));
        let parsed = parsed.collect::<anyhow::Result<Vec<_>>>()?;
        let files: Vec<_> = parsed.iter().flat_map(ParsedSource::unopened).collect();
        let fingerprint = fingerprint(&files);
        let is_known = fingerprint.is_some_and(|fingerprint| checked.contains(&fingerprint));
        let reasons = if is_known { HashMap::new() } else { open_all(&files) };

        let (mut datasets, mut sources) = (Vec::new(), Vec::new());
        let (mut problems, mut unreadable, mut repeats) = (Vec::new(), Vec::new(), Vec::new());
        let has_serious_problems = parsed.iter().any(|source| source.report.is_serious());
        for mut source in parsed {
            problems.extend(self.report(&mut source));
            unreadable.extend(self.drop_unreadable(&mut source, &reasons));
            let ParsedSource { config, dataset, .. } = source;
            repeats.extend(vec![f64::from(config.repeat); dataset.images().len()]);
            sources.push(SourceSummary {
                annotations: config.annotations.clone(),
                images: dataset.images().len(),
                boxes: dataset.annotations().iter().filter(|annotation| !annotation.crowd).count(),
                repeat: config.repeat,
            });
            datasets.push(dataset);
        }
        Ok(Split {
            dataset: Dataset::join(datasets)?,
            sources,
            problems,
            has_serious_problems,
            fingerprint: fingerprint.filter(|_| unreadable.is_empty()),
            unreadable,
            repeats,
        })
    }

    /// The problems of the annotations, one sentence per kind.
    fn report(&mut self, source: &mut ParsedSource) -> Vec<String> {
        let path = source.config.annotations.display();
        if self.bad == BadAnnotations::Refuse && source.report.is_serious() {
            source.report.on_problem = OnProblem::Refuse;
            self.refusals.push(format!("`{path}` has {}; {REMEDY}", source.report));
        }
        source.report.lines().into_iter().map(|line| format!("`{path}` has {line}")).collect()
    }

    /// Drops the images that cannot be read, and returns them.
    fn drop_unreadable(&mut self, source: &mut ParsedSource, reasons: &HashMap<&Path, String>) -> Vec<Unreadable> {
        let all = source.dataset.images().len();
        let reason = |image: usize| reasons.get(source.dataset.path_of(image).as_path()).cloned();
        let found: Vec<_> = (0..all).map(reason).collect();
        let dropped = source.dataset.drop_images(&found.iter().map(Option::is_none).collect::<Vec<_>>());
        let names: Vec<_> = dropped.iter().map(|image| &image.file_name).collect();
        if !names.is_empty() {
            let (path, folder) = (source.config.annotations.display(), source.dataset.folder().display());
            let (count, verb) = (names.len(), if names.len() == 1 { "is" } else { "are" });
            let all_images = counted(all, "image", "images");
            let names = format_list(&names);
            let text =
                format!("`{path}`: {count} of {all_images} {verb} missing in `{folder}` or cannot be read: {names}");
            // If none can be read, the folder is probably wrong.
            if self.bad == BadAnnotations::Drop && count < all {
                self.warnings.push(format!("{text}; dropped"));
            } else {
                self.refusals.push(format!("{text}; {REMEDY}"));
            }
        }
        let files = dropped.into_iter().map(|image| image.file_name);
        files.zip(found.into_iter().flatten()).map(|(file, reason)| Unreadable { file, reason }).collect()
    }

    /// Judges whether there is something to learn.
    fn check_objects(&mut self, train: &Dataset, spec: &ModelSpec, matcher: &Matcher) {
        let mut objects = train.annotations().iter().filter(|annotation| !annotation.crowd).peekable();
        if objects.peek().is_none() {
            self.refusals.push(format!(
                "the training data has no boxes to learn from: {}, {}; check `data.train`",
                counted(train.images().len(), "image", "images"),
                counted(train.annotations().len(), "crowd region", "crowd regions"),
            ));
            return;
        }
        let matched = match_objects(train, &evenly_spaced(train.images().len(), MAX_SEARCHED), spec, matcher);
        if !matched.is_empty() && matched.iter().all(|object| object.anchors == 0) {
            let normalized = objects.all(|object| object.rectangle.width <= 1.0 && object.rectangle.height <= 1.0);
            let hint = if normalized { "; coordinates from 0 to 1 are only read from YOLO labels" } else { "" };
            self.warnings.push(format!(
                "no box matches an anchor, so nothing can be learned; see `trainer check --suggest-anchors`{hint}"
            ));
        }
    }
}

impl<'a> ParsedSource<'a> {
    fn read(config: &'a DatasetConfig, on_problem: OnProblem) -> anyhow::Result<Self> {
        let measured = Mutex::new(HashSet::new());
        let (dataset, report) = config.source().read(on_problem, &|path| {
            let size = image_file::size(path).map_err(|error| error.reason.to_string())?;
            measured.lock().map_err(|error| error.to_string())?.insert(path.to_owned());
            Ok(size)
        })?;
        let measured = measured.into_inner().ok().context("a thread that measured images panicked")?;
        Ok(Self { config, dataset, report, measured })
    }

    /// The image files that were not opened to measure them.
    fn unopened(&self) -> impl Iterator<Item = PathBuf> {
        let files = (0..self.dataset.images().len()).map(|image| self.dataset.path_of(image));
        files.filter(|file| !self.measured.contains(file))
    }
}

/// A hash of the names, sizes and modification times of files; none if a file cannot be found.
fn fingerprint(files: &[PathBuf]) -> Option<u64> {
    let state = |file: &PathBuf| {
        let metadata = file.metadata().ok()?;
        Some((metadata.len(), metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?))
    };
    let states = files.par_iter().map(state).collect::<Option<Vec<_>>>()?;
    let mut hasher = DefaultHasher::new();
    (files, states).hash(&mut hasher);
    Some(hasher.finish())
}

/// Why images cannot be used, judged by the first bytes of their files.
fn open_all(files: &[PathBuf]) -> HashMap<&Path, String> {
    let count = Count::new("checking images", files.len() as u64);
    let failures = files.par_iter().filter_map(|file| {
        let size = image_file::size(file);
        count.advance();
        Some((file.as_path(), size.err()?.reason.to_string()))
    });
    failures.collect()
}

/// Gives both splits the classes of the model, or else those of the training data, matched by name. A split may lack some of
/// them. Returns why that is impossible.
fn unify_classes(configured: &[Class], train: &mut Dataset, validation: &mut Dataset) -> Option<String> {
    let classes = if configured.is_empty() { train.classes().to_vec() } else { configured.to_vec() };
    if classes.is_empty() {
        return Some("the training data has no classes".to_owned());
    }
    let names = format_list(&classes.iter().map(|class| &class.name).collect::<Vec<_>>());
    match train.set_classes(&classes) {
        Ok(()) => {}
        Err(InvalidDataset::UnknownClasses { names: unknown }) => {
            return Some(format!(
                "the training data has classes that are not in `model.classes` ({names}): {}; omit `model.classes` to \
                 use those of the data",
                format_list(&unknown)
            ));
        }
        Err(error) => return Some(format!("`model.classes`: {error}")),
    }
    match validation.set_classes(&classes) {
        Ok(()) => None,
        Err(InvalidDataset::UnknownClasses { names: unknown }) => Some(format!(
            "the validation data has classes that are not in the training data ({names}): {}; list all of them in a \
             file, and set `classes` of both splits to it",
            format_list(&unknown)
        )),
        Err(error) => Some(format!("the classes of the data: {error}")),
    }
}

/// At most `count` indices below `all`, evenly spaced.
pub(crate) fn evenly_spaced(all: usize, count: usize) -> Vec<usize> {
    let count = count.min(all);
    (0..count).map(|index| index * all / count).collect()
}

#[cfg(test)]
mod tests {
    use image::RgbImage;
    use std::fs;

    use super::*;
    use crate::overrides::Overrides;

    #[test]
    fn indices_are_evenly_spaced_and_distinct() {
        assert_eq!(evenly_spaced(10, 5), [0, 2, 4, 6, 8]);
        assert_eq!(evenly_spaced(3, 20), [0, 1, 2]);
        assert_eq!(evenly_spaced(0, 20), [0; 0]);
        assert_eq!(evenly_spaced(20, 0), [0; 0]);
    }

    /// Two folders with an image `a.png` each, in COCO and in CSV, of which the second names another class first.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let coco = r#"{"images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 64}], "annotations": [
            {"id": 5, "image_id": 1, "category_id": 3, "bbox": [4, 4, 40, 40]}], "categories": [{"id": 3, "name": "dog"}]}"#;
        for (name, text) in [("one/a.json", coco), ("two/b.csv", "a.png,4,4,40,40,cat\na.png,4,4,50,50,dog\n")] {
            let path = folder.path().join(name);
            fs::create_dir(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            RgbImage::new(64, 64).save(path.with_file_name("a.png")).unwrap();
        }
        folder
    }

    fn read(folder: &Path, data: &str, checked: &HashSet<u64>) -> Splits {
        let path = folder.join("retinanet.yaml");
        fs::write(&path, format!("data: {data}")).unwrap();
        Splits::read(&TrainConfig::read(&path, None, &Overrides::default()).unwrap(), checked).unwrap()
    }

    const BOTH: &str = "{train: [{annotations: one/a.json}, {annotations: two/b.csv, repeat: 3}], \
                        validation: {annotations: two/b.csv}}";

    #[test]
    fn data_sets_of_a_split_are_joined_by_class_name() {
        let folder = folder();
        let Splits { train, validation, refusals, warnings } = read(folder.path(), BOTH, &HashSet::new());
        assert_eq!((refusals, warnings), (vec![], vec![]));
        let files: Vec<_> = train.dataset.images().iter().map(|image| image.file_name.as_str()).collect();
        assert_eq!((files, &train.repeats[..]), (vec!["one/a.png", "two/a.png"], &[1.0, 3.0][..]));
        let names = |dataset: &Dataset| dataset.classes().iter().map(|class| class.name.clone()).collect::<Vec<_>>();
        assert_eq!(
            (names(&train.dataset), names(&validation.dataset)),
            (vec!["dog".into(), "cat".into()], names(&train.dataset))
        );
        let objects: Vec<_> = train.dataset.annotations().iter().map(|one| (one.image, one.class_index)).collect();
        assert_eq!(objects, [(0, 0), (1, 1), (1, 0)]);
        assert_eq!(
            train.sources.iter().map(|one| (one.images, one.boxes, one.repeat)).collect::<Vec<_>>(),
            [(1, 1, 1), (1, 2, 3)]
        );
    }

    #[test]
    fn images_are_opened_again_only_after_a_change() {
        let folder = folder();
        let first = read(folder.path(), BOTH, &HashSet::new());
        let checked: HashSet<_> = [first.train.fingerprint.unwrap()].into();
        // The same size and time, but no image: it is not looked at.
        let image = folder.path().join("one/a.png");
        let (bytes, time) = (fs::read(&image).unwrap(), image.metadata().unwrap().modified().unwrap());
        let damage = |time| {
            fs::write(&image, vec![0; bytes.len()]).unwrap();
            fs::File::options().write(true).open(&image).unwrap().set_modified(time).unwrap();
            read(folder.path(), BOTH, &checked)
        };
        assert_eq!(damage(time).refusals, [""; 0]);
        let changed = damage(time + std::time::Duration::from_millis(3));
        assert!(changed.refusals[0].contains("1 of 1 image is missing in"), "{:?}", changed.refusals);
        assert_eq!(changed.train.unreadable[0].file, "a.png");
        assert_eq!(changed.train.fingerprint, None);
    }

    #[test]
    fn every_reason_to_refuse_is_listed() {
        let folder = folder();
        fs::write(folder.path().join("two/c.csv"), "a.png,4,4,4,9,cow\na.png,1,1,9,9,cow\n").unwrap();
        let data = "{train: {annotations: one/a.json}, validation: {annotations: two/c.csv}}";
        let refusals = read(folder.path(), data, &HashSet::new()).refusals;
        assert!(refusals[0].contains("c.csv` has 1 box of zero area: a.png annotation 1"), "{refusals:?}");
        assert!(refusals[1].contains("not in the training data (dog): cow"), "{refusals:?}");
        assert_eq!(refusals.len(), 2);
    }
}
