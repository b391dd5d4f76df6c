//! `report.html`: what a run has learned and where it errs, on one page that needs nothing but a browser.

mod page;
mod numbers;
mod learning;
mod confusion;
mod showcase;
mod origin;

mod chart;
mod markup;
mod text;
mod log;
mod threshold;

use std::path::{Path, PathBuf};

use anyhow::Context;
use models::evaluation::{ConfusionRule, ScoredBox};
use models::write_atomically;
use runtime::evaluation_report::{Details, EvaluationReport};

use crate::loader::Recipe;
use crate::progress::duration;
use log::Log;
use origin::Times;
use page::Page;
use text::{counted, percent, share};
use threshold::{Counts, best_rule};

/// Everything that a report is made of.
#[derive(Clone, Copy)]
pub(crate) struct Material<'a> {
    /// The run folder: `log.jsonl` and `config.yaml` are read from there, and the report goes there.
    pub folder: &'a Path,
    /// The validation data and the classes.
    pub recipe: &'a Recipe,
    /// What the best checkpoint finds in the validation images.
    pub scored: &'a [ScoredBox],
    /// The epoch of that checkpoint, from 1; none before the first.
    pub best_epoch: Option<u32>,
    /// The command that was given.
    pub command: &'a str,
}

/// Writes `report.html` into the run folder, whole or not at all, and says where it is. An image that can't be read is
/// missing from it, and so is what the log does not say.
///
/// # Errors
/// When the log can't be read, or the report can't be written.
pub(crate) fn write(material: &Material) -> anyhow::Result<PathBuf> {
    let log = Log::read(material.folder)?;
    let path = material.folder.join("report.html");
    let document = document(material, &log);
    write_atomically::<std::io::Error>(&path, |file| file.write_all(document.as_bytes()))
        .with_context(|| format!("can't write {}", path.display()))?;
    Ok(path)
}

fn document(material: &Material, log: &Log) -> String {
    let Material { recipe, scored, best_epoch, .. } = *material;
    let rule = best_rule(&recipe.dataset, scored);
    let report =
        EvaluationReport::new(&recipe.dataset, scored, &Details { voc_iou: None, confusion: Some(rule.score) });
    let times = Times::of(material.folder);
    let mut page = Page::new(&name(material.folder));
    page.facts(&facts(material, log, &times, &report, rule));
    page.section("results", "Results", |markup| {
        markup.element("div", &[("class", &"pair")], |markup| {
            if log.epochs.is_empty() {
                markup.phrase("p", &[("class", &"empty")], "The log has no epochs.");
            } else {
                learning::precision(&log.epochs, best_epoch, markup);
            }
            numbers::summary(&report.summary, markup);
        });
    });
    page.section("learning", "Learning", |markup| learning::draw(log, markup));
    page.section("classes", "Classes", |markup| numbers::classes(&report.classes, markup));
    page.section("curves", "Precision and recall", |markup| numbers::curves(&report, markup));
    if let Some(confusion) = &report.confusion {
        page.section("confusions", "Confusions", |markup| confusion::draw(confusion, markup));
    }
    page.section("images", "Images", |markup| showcase::draw(recipe, scored, rule, markup));
    page.section("origin", "Configuration and machine", |markup| origin::draw(material, log, &times, markup));
    page.into_document(
        "Training report of a RetinaNet detector. Numbers are of the best checkpoint, on the validation data.",
    )
}

/// What to know first.
fn facts(
    material: &Material,
    log: &Log,
    times: &Times,
    report: &EvaluationReport,
    rule: ConfusionRule,
) -> Vec<(&'static str, String, String)> {
    let dataset = &material.recipe.dataset;
    let counts = report.confusion.as_ref().map(|confusion| Counts::of(&confusion.matrix)).unwrap_or_default();
    let objects = dataset.annotations.iter().filter(|annotation| !annotation.crowd).count();
    let epochs = log.epochs.len();
    let best = material.best_epoch.map_or_else(String::new, |epoch| format!("of epoch {epoch}"));
    let steps = counted(log.steps.len(), "step", "steps");
    let spent = times.between().map(|time| duration(time.as_secs_f64()));
    let learned = spent.map_or_else(|| steps.clone(), |spent| format!("{steps} in {spent}"));
    vec![
        ("AP", share(report.summary.ap), best),
        ("AP50", share(report.summary.ap50), format!("AP75 {}", share(report.summary.ap75))),
        (
            "Best score threshold",
            // Without any right detection, no threshold is better than another.
            if counts.right > 0 { format!("{:.2}", rule.score) } else { text::DASH.to_owned() },
            format!("precision {}, recall {}", percent(counts.precision()), percent(counts.recall())),
        ),
        (
            "Validated on",
            counted(dataset.images.len(), "image", "images"),
            format!(
                "{} of {}",
                counted(objects, "object", "objects"),
                counted(dataset.classes.len(), "class", "classes")
            ),
        ),
        ("Learned for", counted(epochs, "epoch", "epochs"), learned),
    ]
}

/// The name of a folder, also of one that is given by dots or by a link.
fn name(folder: &Path) -> String {
    let absolute = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    absolute.file_name().map_or_else(|| "run".to_owned(), |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod sample;

#[cfg(test)]
mod tests {
    use models::dataset::{Annotation, Dataset, Image, OnProblem, Rectangle, Source};
    use models::spec::Class;

    use super::sample::Sample;
    use super::*;

    /// A report of twelve images should pass through any mailbox.
    const LARGEST: usize = 3 << 20;

    const ODD: &str = "<script>alert('\"&\"')</script>";

    /// Reads the report as XML, which fails if an element is not closed or a text not escaped, and gives its texts.
    fn texts(report: &str) -> String {
        let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
        let document = roxmltree::Document::parse_with_options(report, options).unwrap();
        assert!(
            document.descendants().all(|node| !node.has_tag_name("script") && !node.tag_name().name().eq("script"))
        );
        let ids: Vec<_> = document.descendants().filter_map(|node| node.attribute("id")).collect();
        for link in document.descendants().filter_map(|node| node.attribute("href")) {
            assert!(link.strip_prefix('#').is_some_and(|id| ids.contains(&id)), "{link} leads nowhere");
        }
        for source in document.descendants().filter_map(|node| node.attribute("src")) {
            assert!(source.starts_with("data:image/jpeg;base64,"), "{source} needs a network");
        }
        let shown = document.descendants().filter(|node| node.is_text());
        let texts: Vec<_> = shown.filter(|node| node.parent_element().unwrap().tag_name().name() != "style").collect();
        let text = texts.iter().filter_map(|node| node.text()).collect::<Vec<_>>().join("\n");
        assert!(!text.contains("NaN") && !text.contains("inf\n") && !text.contains("-1.0000"), "{text}");
        text
    }

    fn count(report: &str, part: &str) -> usize {
        report.matches(part).count()
    }

    /// A data set of these classes and no file: of each class an object on each image.
    fn unreadable(names: &[String], images: usize) -> Dataset {
        let image = |id| Image { id, file_name: format!("{ODD}-{id}.png"), width: 100, height: 100 };
        let place =
            |class: usize| Rectangle { x: 7.0 * class as f64, y: 7.0 * (class % 9) as f64, width: 6.0, height: 6.0 };
        let object = |image, class_index| Annotation {
            id: 1,
            image,
            class_index,
            rectangle: place(class_index),
            area: 36.0,
            crowd: false,
        };
        Dataset {
            folder: "/nowhere".into(),
            images: (0..images as i64).map(image).collect(),
            annotations: (0..images)
                .flat_map(|image| (0..names.len()).map(move |class| object(image, class)))
                .collect(),
            classes: (0..).zip(names).map(|(id, name)| Class { id, name: name.clone() }).collect(),
        }
    }

    #[test]
    fn a_report_has_all_its_parts_in_one_file() {
        let sample =
            Sample::new(30).logged(12, 40).with_file("config.yaml", "model:\n  backbone: resnet18 # <a & b>\n");
        let report = sample.report("drawn", Some(11));
        let text = texts(&report);
        for part in [
            "shapes-1",
            "of epoch 11",
            "Average precision after each epoch",
            "Classification loss",
            "Box loss",
            "Learning rate",
            "Gradient norm",
            "Images per second",
            "Seconds of an epoch",
            "waiting for data",
            "AP50",
            "AR100",
            "all classes",
            "taken for →",
            "background",
            "Worst",
            "Best",
            "backbone: resnet18 # <a & b>",
            "trainer fit --config shapes.yaml",
            "libtorch",
        ] {
            assert!(text.contains(part), "{part} is missing");
        }
        assert_eq!(count(&report, "<img "), 12);
        assert!(report.len() < LARGEST, "{} bytes", report.len());
        assert!(!report.contains("http://") || count(&report, "http://") == count(&report, "xmlns=\"http://"));
    }

    #[test]
    fn names_of_files_and_classes_are_text_and_nothing_else() {
        let names = [ODD.to_owned(), "a \"b\" 'c' & d".to_owned(), "e\0f".to_owned()];
        let mut sample = Sample::of(tempfile::tempdir().unwrap(), unreadable(&names, 3)).logged(2, 3);
        sample.command = ODD.to_owned();
        let report = sample.with_file("config.yaml", ODD).report("odd", Some(2));
        assert_eq!(count(&report, "<script"), 0);
        let text = texts(&report);
        assert!(text.contains(ODD) && text.contains(&names[1]), "{text}");
        // Images that are not there don't stop a report.
        assert!(text.contains("Not drawn") && count(&report, "<img ") == 0);
    }

    #[test]
    fn nothing_learned_and_nothing_found_is_said() {
        let mut sample = Sample::new(2);
        sample.scored.clear();
        let text = texts(&sample.report("empty", None));
        for part in ["The log has no steps", "The log has no epochs", "No configuration", "On no image", "0.0000"] {
            assert!(text.contains(part), "{part} is missing from {text}");
        }
        let nothing = Sample::of(tempfile::tempdir().unwrap(), Dataset::default());
        let text = texts(&nothing.report("nothing", None));
        assert!(text.contains("No class has an object to find") && text.contains(text::DASH), "{text}");
    }

    #[test]
    fn one_epoch_of_one_step_and_numbers_that_are_none_are_no_harm() {
        let mut sample = Sample::new(3).logged(1, 1);
        for found in &mut sample.scored {
            found.score = f64::NAN;
            found.rectangle.width = f64::INFINITY;
        }
        texts(&sample.report("one", Some(1)));
        let log = r#"{"step":1,"epoch":1,"classification_loss":null,"box_loss":1e300,"gradient_norm":0,"learning_rate":0}
            {"epoch":1,"seconds":null,"images_per_second":null,"spent":{"data":-1}}
            {"step":2,"ep"#;
        texts(&Sample::new(1).with_file("log.jsonl", log).report("cut", None));
    }

    #[test]
    fn many_classes_have_a_list_of_confusions_and_long_runs_a_small_file() {
        let names: Vec<_> = (0..120).map(|class| format!("class {class} of a long name")).collect();
        let sample = Sample::of(tempfile::tempdir().unwrap(), unreadable(&names, 5)).logged(300, 200);
        let report = sample.report("many", Some(299));
        let text = texts(&report);
        assert!(text.contains("of all") && !text.contains("taken for →"));
        assert!(text.contains("Of 120 classes, the 100 with the most objects") && text.contains("80 more classes"));
        assert!(report.len() < LARGEST, "{} bytes", report.len());
        let one = Sample::of(tempfile::tempdir().unwrap(), unreadable(&names[..1], 5)).logged(3, 4);
        let text = texts(&one.report("single", Some(3)));
        assert!(text.contains("taken for →") && !text.contains("all classes"));
    }

    #[test]
    fn real_images_make_a_small_file_too() {
        let Some(data) = std::env::var_os("RETINANET_DATA") else {
            eprintln!("skipped: RETINANET_DATA is not set");
            return;
        };
        let data = PathBuf::from(data).join("bccd");
        let annotations = Source::new(data.join("derived/instances_val.json"));
        let source = Source { images: Some(data.join("JPEGImages")), ..annotations };
        let (dataset, _) = runtime::data::read(&source, OnProblem::Drop).unwrap();
        let report = Sample::of(tempfile::tempdir().unwrap(), dataset).logged(40, 25).report("real", Some(37));
        texts(&report);
        assert_eq!(count(&report, "<img "), 12);
        assert!(report.len() < LARGEST, "{} bytes", report.len());
    }
}
