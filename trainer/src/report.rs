//! `report.html`: the training curves, results and errors of a run, as one self-contained page for a browser.

mod material;
mod page;
mod numbers;
mod learning;
mod confusion;
mod showcase;
mod origin;

mod chart;
mod markup;
mod text;
mod threshold;

use std::path::{Path, PathBuf};

use anyhow::Context;
use models::evaluation::ConfusionRule;
use models::write_atomically;
use runtime::evaluation_report::{Details, EvaluationReport};

use crate::progress::duration;
use crate::run::log::Log;
pub(crate) use material::Material;
use origin::Times;
use page::Page;
use text::{counted, fraction, percent};
use threshold::{Counts, best_rule};

/// Writes `report.html` into the run folder atomically, and returns its path. Unreadable images and values missing from the
/// log are left out.
///
/// # Errors
/// When the log cannot be read or the report cannot be written.
pub(crate) fn write(material: &Material) -> anyhow::Result<PathBuf> {
    let log = Log::read(material.folder)?;
    let path = material.folder.join("report.html");
    let document = document(material, &log);
    write_atomically::<std::io::Error>(&path, |file| file.write_all(document.as_bytes()))
        .with_context(|| format!("cannot write `{}`", path.display()))?;
    Ok(path)
}

fn document(material: &Material, log: &Log) -> String {
    let Material { recipe, scored, best_epoch, .. } = *material;
    let rule = best_rule(&recipe.dataset, scored);
    let report =
        EvaluationReport::new(&recipe.dataset, scored, &Details { confusion: Some(rule.score), ..Details::default() });
    let times = Times::of(material.folder);
    let mut page = Page::new(&name(material.folder));
    page.facts(&facts(material, log, &times, &report, rule));
    page.section("results", "Results", |markup| {
        markup.element("div", &[("class", &"pair")], |markup| {
            if log.epochs.is_empty() {
                markup.phrase("p", &[("class", &"empty")], "The log contains no epochs.");
            } else {
                learning::precision(&log.epochs, best_epoch, markup);
            }
            numbers::summary(&report.summary, markup);
        });
    });
    page.section("learning", "Training", |markup| learning::draw(log, markup));
    page.section("classes", "Classes", |markup| numbers::classes(&report.classes, markup));
    page.section("curves", "Precision and recall", |markup| numbers::curves(&report, markup));
    if let Some(confusion) = &report.confusion {
        page.section("confusions", "Confusion matrix", |markup| confusion::draw(confusion, markup));
    }
    page.section("images", "Images", |markup| showcase::draw(recipe, scored, rule, markup));
    page.section("origin", "Configuration and machine", |markup| origin::draw(material, log, &times, markup));
    page.into_document(
        "Training report of a RetinaNet detector. All results are those of the best checkpoint on the validation data.",
    )
}

/// The facts at the top of the page: name, value and remark.
fn facts(
    material: &Material,
    log: &Log,
    times: &Times,
    report: &EvaluationReport,
    rule: ConfusionRule,
) -> Vec<(&'static str, String, String)> {
    let dataset = &material.recipe.dataset;
    let counts = report.confusion.as_ref().map(|confusion| Counts::of(&confusion.matrix)).unwrap_or_default();
    let objects = dataset.annotations().iter().filter(|annotation| !annotation.crowd).count();
    let epochs = log.epochs.len();
    let best = material.best_epoch.map_or_else(String::new, |epoch| format!("best epoch: {epoch}"));
    let steps = counted(log.steps.len(), "step", "steps");
    let spent = times.between().map(|time| duration(time.as_secs_f64()));
    let trained_for = spent.map_or_else(|| steps.clone(), |spent| format!("{steps} in {spent}"));
    vec![
        ("AP", fraction(report.summary.ap), best),
        ("AP50", fraction(report.summary.ap50), format!("AP75 {}", fraction(report.summary.ap75))),
        (
            "Best score threshold",
            // Without any correct detection, all thresholds are equally bad.
            if counts.right > 0 { format!("{:.2}", rule.score) } else { text::DASH.to_owned() },
            format!("precision {}, recall {}", percent(counts.precision()), percent(counts.recall())),
        ),
        (
            "Validation data",
            counted(dataset.images().len(), "image", "images"),
            format!(
                "{} of {}",
                counted(objects, "object", "objects"),
                counted(dataset.classes().len(), "class", "classes")
            ),
        ),
        ("Trained for", counted(epochs, "epoch", "epochs"), trained_for),
    ]
}

/// The name of a folder, also if the path is a link or ends with dots.
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

    /// Maximum size of a report with twelve images, in bytes: it should be small enough for an email.
    const MAX_SIZE: usize = 3 << 20;

    const ODD: &str = "<script>alert('\"&\"')</script>";

    /// Parses the report as XML, which fails on unclosed elements and unescaped texts; returns its texts.
    fn texts(report: &str) -> String {
        let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
        let document = roxmltree::Document::parse_with_options(report, options).unwrap();
        assert!(
            document.descendants().all(|node| !node.has_tag_name("script") && !node.tag_name().name().eq("script"))
        );
        let ids: Vec<_> = document.descendants().filter_map(|node| node.attribute("id")).collect();
        for link in document.descendants().filter_map(|node| node.attribute("href")) {
            assert!(link.strip_prefix('#').is_some_and(|id| ids.contains(&id)), "{link} has no target");
        }
        for source in document.descendants().filter_map(|node| node.attribute("src")) {
            assert!(source.starts_with("data:image/jpeg;base64,"), "{source} needs network access");
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

    /// A data set with these classes, without image files. Every image has one object of every class.
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
            difficult: false,
        };
        let annotations = (0..images).flat_map(|image| (0..names.len()).map(move |class| object(image, class)));
        let classes = (0..).zip(names).map(|(id, name)| Class { id, name: name.clone() }).collect();
        Dataset::new("/nowhere", (0..images as i64).map(image).collect(), annotations.collect(), classes).unwrap()
    }

    #[test]
    fn a_report_is_one_file_with_all_parts() {
        let sample =
            Sample::new(30).logged(12, 40).with_file("config.yaml", "model:\n  backbone: resnet18 # <a & b>\n");
        let report = sample.report("drawn", Some(11));
        let text = texts(&report);
        for part in [
            "shapes-1",
            "best epoch: 11",
            "Average precision after each epoch",
            "Classification loss",
            "Box loss",
            "Learning rate",
            "Gradient norm",
            "images per second",
            "Time per epoch",
            "waiting for data",
            "AP50",
            "AR100",
            "all classes",
            "detected as →",
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
        assert!(report.len() < MAX_SIZE, "{} bytes", report.len());
        assert!(!report.contains("http://") || count(&report, "http://") == count(&report, "xmlns=\"http://"));
    }

    #[test]
    fn names_of_files_and_classes_are_escaped() {
        let names = [ODD.to_owned(), "a \"b\" 'c' & d".to_owned(), "e\0f".to_owned()];
        let mut sample = Sample::of(tempfile::tempdir().unwrap(), unreadable(&names, 3)).logged(2, 3);
        sample.command = ODD.to_owned();
        let report = sample.with_file("config.yaml", ODD).report("odd", Some(2));
        assert_eq!(count(&report, "<script"), 0);
        let text = texts(&report);
        assert!(text.contains(ODD) && text.contains(&names[1]), "{text}");
        // Missing images do not prevent a report.
        assert!(text.contains("Cannot draw the image") && count(&report, "<img ") == 0);
    }

    #[test]
    fn empty_logs_and_results_are_reported() {
        let mut sample = Sample::new(2);
        sample.scored.clear();
        let text = texts(&sample.report("empty", None));
        let parts = ["contains no steps", "contains no epochs", "No configuration", "No object was found", "0.0000"];
        for part in parts {
            assert!(text.contains(part), "{part} is missing from {text}");
        }
        let nothing = Sample::of(tempfile::tempdir().unwrap(), Dataset::default());
        let text = texts(&nothing.report("nothing", None));
        assert!(text.contains("No class has ground truth objects") && text.contains(text::DASH), "{text}");
    }

    #[test]
    fn single_steps_and_non_finite_numbers_are_accepted() {
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
    fn many_classes_get_a_list_of_confusions_and_long_runs_a_small_file() {
        let names: Vec<_> = (0..120).map(|class| format!("class {class} of a long name")).collect();
        let sample = Sample::of(tempfile::tempdir().unwrap(), unreadable(&names, 5)).logged(300, 200);
        let report = sample.report("many", Some(299));
        let text = texts(&report);
        assert!(text.contains("of all") && !text.contains("detected as →"));
        assert!(text.contains("The 100 classes with the most objects, of 120") && text.contains("80 more classes"));
        assert!(report.len() < MAX_SIZE, "{} bytes", report.len());
        let one = Sample::of(tempfile::tempdir().unwrap(), unreadable(&names[..1], 5)).logged(3, 4);
        let text = texts(&one.report("single", Some(3)));
        assert!(text.contains("detected as →") && !text.contains("all classes"));
    }

    #[test]
    fn reports_with_real_images_are_small_files() {
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
        assert!(report.len() < MAX_SIZE, "{} bytes", report.len());
    }
}
