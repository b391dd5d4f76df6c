//! The two splits of the data, and the judgement of `fit` and `check` about them.

use anyhow::{bail, ensure};
use models::coverage::match_objects;
use models::dataset::{Dataset, InvalidDataset, OnProblem, Source, format_list};
use models::spec::Class;
use models::{Matcher, ModelSpec};
use rayon::prelude::*;
use runtime::data::has_image;
use runtime::progress::warn;

use crate::config::BadAnnotations;

const REMEDY: &str = "fix them, or set `data.bad_annotations: drop`";

/// Images that are searched for a box with a matched anchor.
const MAX_SEARCHED: usize = 1000;

/// Reads a split for training. Prints warnings about what is dropped.
///
/// # Errors
/// When the split cannot be read, has problems that `bad` refuses, or has no usable image.
pub(crate) fn read(source: &Source, bad: BadAnnotations, dropping: OnProblem) -> anyhow::Result<Dataset> {
    let path = source.annotations.display();
    let (mut dataset, mut report) = runtime::data::read(source, dropping)?;
    if bad == BadAnnotations::Refuse && report.is_serious() {
        report.on_problem = OnProblem::Refuse;
        bail!("`{path}` has {report}; {REMEDY}");
    }
    for line in report.lines() {
        warn(format_args!("`{path}` has {line}"));
    }
    let all = dataset.images().len();
    let readable: Vec<_> = (0..all).into_par_iter().map(|image| has_image(&dataset, image)).collect();
    let missing: Vec<_> = dataset.drop_images(&readable).into_iter().map(|image| image.file_name).collect();
    if !missing.is_empty() {
        let count = missing.len();
        let folder = dataset.folder().display();
        let text = format!(
            "`{path}`: {count} of {all} images are missing in `{folder}` or cannot be read: {}",
            format_list(&missing)
        );
        // If none can be read, the folder is probably wrong.
        ensure!(bad == BadAnnotations::Drop && count < all, "{text}; {REMEDY}");
        warn(format_args!("{text}; dropped"));
    }
    ensure!(!dataset.images().is_empty(), "`{path}` has no images");
    Ok(dataset)
}

/// Gives both splits the classes of the model, or else those of the training data, matched by name. A split may lack some of them.
///
/// # Errors
/// When a split has other classes, or there are none.
pub(crate) fn unify_classes(configured: &[Class], train: &mut Dataset, validation: &mut Dataset) -> anyhow::Result<()> {
    let classes = if configured.is_empty() { train.classes().to_vec() } else { configured.to_vec() };
    ensure!(!classes.is_empty(), "the training data has no classes");
    let names = |classes: &[Class]| format_list(&classes.iter().map(|class| &class.name).collect::<Vec<_>>());
    if let Err(InvalidDataset::UnknownClasses { names: unknown }) = train.set_classes(&classes) {
        bail!(
            "the training data has classes that are not in `model.classes` ({}): {}; omit `model.classes` to use those of the data",
            names(&classes),
            format_list(&unknown)
        );
    }
    if let Err(InvalidDataset::UnknownClasses { names: unknown }) = validation.set_classes(&classes) {
        bail!(
            "the validation data has classes that are not in the training data ({}): {}; list all of them in a file, and set \
             `classes` of both splits to it",
            names(&classes),
            format_list(&unknown)
        );
    }
    Ok(())
}

/// Checks that there is something to learn.
///
/// # Errors
/// When the training data has no box except crowd regions.
pub(crate) fn ensure_learnable(train: &Dataset, spec: &ModelSpec, matcher: &Matcher) -> anyhow::Result<()> {
    let mut objects = train.annotations().iter().filter(|annotation| !annotation.crowd).peekable();
    ensure!(
        objects.peek().is_some(),
        "the training data has no boxes to learn from: {} images, {} crowd regions; check `data.train`",
        train.images().len(),
        train.annotations().len()
    );
    let searched: Vec<_> = evenly_spaced(train.images().len(), MAX_SEARCHED);
    let matched = match_objects(train, &searched, spec, matcher);
    if !matched.is_empty() && matched.iter().all(|object| object.anchors == 0) {
        let normalized = objects.all(|object| object.rectangle.width <= 1.0 && object.rectangle.height <= 1.0);
        let hint = if normalized { "; coordinates from 0 to 1 are only read from YOLO labels" } else { "" };
        warn(format_args!(
            "no box matches an anchor, so nothing can be learned; see `trainer check --suggest-anchors`{hint}"
        ));
    }
    Ok(())
}

/// At most `count` indices below `all`, evenly spaced.
pub(crate) fn evenly_spaced(all: usize, count: usize) -> Vec<usize> {
    let count = count.min(all);
    (0..count).map(|index| index * all / count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_evenly_spaced_and_distinct() {
        assert_eq!(evenly_spaced(10, 5), [0, 2, 4, 6, 8]);
        assert_eq!(evenly_spaced(3, 20), [0, 1, 2]);
        assert_eq!(evenly_spaced(0, 20), [0; 0]);
        assert_eq!(evenly_spaced(20, 0), [0; 0]);
    }
}
