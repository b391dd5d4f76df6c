//! `trainer report`: the training curves, results, errors and configurations of runs, as one HTML file that a browser
//! shows without network access. The page is static; what it draws is [`ReportData`] as JSON.

mod data;
mod detections;
mod results;
mod images;
mod number;

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use models::write_atomically;

use crate::progress::{print, warn};
use crate::run::folder::linked;
use data::ReportData;
pub(crate) use detections::write_detections;

/// The scripts of the page, in their order.
const SCRIPTS: [&str; 4] = [
    include_str!("report/page/elements.js"),
    include_str!("report/page/chart.js"),
    include_str!("report/page/errors.js"),
    include_str!("report/page/report.js"),
];

/// Report on training runs as one HTML file: curves, results, errors, configuration.
///
/// A run may still be training; the report then has what it has logged and validated so far.
#[derive(Args, Debug)]
pub struct ReportArgs {
    /// Folders of runs; several are compared.
    #[arg(default_value = "runs/latest", value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// HTML file to write [default: report.html in the folder of the run].
    #[arg(long, short)]
    out: Option<PathBuf>,
}

/// Writes a report and prints its path. Prints what is missing from it as warnings.
///
/// # Errors
/// Those of [`write`]; also when there are several runs and no output file.
pub fn run(args: &ReportArgs) -> anyhow::Result<()> {
    ensure!(args.out.is_some() || args.runs.len() == 1, "a report on several runs needs a file; pass one with --out");
    // A run that begins meanwhile moves `runs/latest`.
    let runs: Vec<_> = args.runs.iter().map(|run| linked(run)).collect();
    let out = args.out.clone().unwrap_or_else(|| default_path(&runs[0]));
    write(&runs, &out)?.iter().for_each(|note| warn(format_args!("{note}")));
    print(&format!("wrote `{}`", out.display()))
}

/// The report in the folder of a run.
pub(crate) fn default_path(run: &Path) -> PathBuf {
    run.join("report.html")
}

/// Writes a report on the runs in these folders, at least one, to the HTML file `out`, atomically. Returns what is missing from it,
/// such as damaged lines of a log, which it says itself too.
///
/// # Errors
/// When a folder contains no run, or the report cannot be written.
pub fn write(runs: &[PathBuf], out: &Path) -> anyhow::Result<Vec<String>> {
    let data = ReportData::read(runs)?;
    let page = page(&data)?;
    write_atomically::<std::io::Error>(out, |file| file.write_all(page.as_bytes()))
        .with_context(|| format!("cannot write the report `{}`", out.display()))?;
    Ok(data.notes())
}

/// The HTML page. No `<` of the data stays, so that no name can end the element that contains it.
fn page(data: &ReportData) -> anyhow::Result<String> {
    let json = serde_json::to_string(data)?.replace('<', "\\u003c");
    let page = include_str!("report/page/index.html")
        .replace("/*CSS*/", include_str!("report/page/report.css"))
        .replace("/*JS*/", &SCRIPTS.concat());
    // Last, because the data may contain the other marks.
    Ok(page.replacen("/*DATA*/", &json, 1))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use models::dataset::{Annotation, Dataset, Image, OnProblem, Rectangle, Source};
    use models::evaluation::ScoredBox;
    use models::spec::Class;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use serde_json::{Value, json};
    use tempfile::TempDir;

    use super::*;
    use crate::synth::{Size, draw_images};

    /// Maximum size of the report of one run, in bytes: it should be small enough for an email.
    const MAX_SIZE: usize = 3 << 20;

    const HOSTILE: &str = "</script><script>alert('\"&\"')</script>/*JS*/<!--";

    /// A run folder `shapes-1` with a configuration, on a data set in the same temporary folder.
    struct Sample {
        folder: TempDir,
        dataset: Dataset,
    }

    impl Sample {
        /// A run on this number of generated images.
        fn new(images: u32) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let drawn = folder.path().join("val");
            fs::create_dir(&drawn).unwrap();
            let size = Size { width: 120, height: 90 };
            let generator = |index| ChaCha8Rng::seed_from_u64(u64::from(index));
            let dataset = draw_images(&drawn, "jpg", images, size, generator).unwrap();
            Self::of(folder, dataset)
        }

        /// A run on this data set.
        fn of(folder: TempDir, dataset: Dataset) -> Self {
            fs::create_dir_all(folder.path().join("shapes-1")).unwrap();
            dataset.write_coco(&folder.path().join("val.json")).unwrap();
            let source = json!({"annotations": folder.path().join("val.json"), "images": dataset.folder()});
            let config = json!({"data": {"train": source, "validation": source}, "run": {"epochs": 12}});
            let sample = Self { folder, dataset };
            sample.with("config.yaml", &serde_yaml::to_string(&config).unwrap())
        }

        fn run(&self) -> PathBuf {
            self.folder.path().join("shapes-1")
        }

        /// Writes a file into the run folder.
        fn with(self, name: &str, text: &str) -> Self {
            fs::write(self.run().join(name), text).unwrap();
            self
        }

        /// Writes a log of this number of epochs with `steps` steps each, without its last line break.
        fn logged(self, epochs: u64, steps: u64) -> Self {
            let mut lines = Vec::new();
            for epoch in 1..=epochs {
                lines.extend(((epoch - 1) * steps + 1..=epoch * steps).map(|step| {
                    let loss = 1.0 / step as f64;
                    json!({"step": step, "epoch": epoch, "classification_loss": loss, "box_loss": 0.5, "gradient_norm": null,
                        "learning_rate": 0.01})
                }));
                let mut validation = serde_json::to_value(models::evaluation::evaluate(&[], &[], 1).summary).unwrap();
                validation["AP"] = json!(epoch as f64 / 100.0);
                lines.push(json!({"epoch": epoch, "steps": epoch * steps, "seconds": 2.5, "validation": validation}));
            }
            let text = lines.iter().map(Value::to_string).collect::<Vec<_>>().join("\n");
            self.with("log.jsonl", &text)
        }

        /// Writes detections of all objects, the first one as another class.
        fn detected(self) -> Self {
            let found = |(index, object): (usize, &Annotation)| ScoredBox {
                image: object.image,
                class_index: if index == 0 { 1 - object.class_index.min(1) } else { object.class_index },
                score: 0.725_432_1,
                rectangle: object.rectangle,
            };
            let detections: Vec<_> = self.dataset.annotations().iter().enumerate().map(found).collect();
            write_detections(&self.run(), &self.dataset, &detections).unwrap();
            self
        }

        /// The report's page, its data, and the notes.
        fn report(&self) -> (String, Value, Vec<String>) {
            let out = self.run().join("report.html");
            let notes = write(&[self.run()], &out).unwrap();
            let page = fs::read_to_string(out).unwrap();
            let start = page.split_once("id=\"data\">").unwrap().1;
            let data = serde_json::from_str(start.split_once("</script>").unwrap().0).unwrap();
            (page, data, notes)
        }
    }

    /// A data set with these classes and two images without files. Every image has one object of every class.
    fn unreadable(names: &[String]) -> Dataset {
        let image = |id| Image { id, file_name: format!("{HOSTILE}-{id}.png"), width: 100, height: 100 };
        let object = |image: usize, class_index: usize| Annotation {
            id: (image * names.len() + class_index) as i64 + 1,
            image,
            class_index,
            rectangle: Rectangle {
                x: 7.0 * (class_index % 9) as f64,
                y: 7.0 * (class_index / 9) as f64,
                width: 6.0,
                height: 6.0,
            },
            area: 36.0,
            crowd: false,
            difficult: false,
        };
        let annotations = (0..2).flat_map(|image| (0..names.len()).map(move |class| object(image, class)));
        let classes = (0..).zip(names).map(|(id, name)| Class { id, name: name.clone() }).collect();
        Dataset::new("/nowhere", (0..2).map(image).collect(), annotations.collect(), classes).unwrap()
    }

    #[test]
    fn a_report_has_the_numbers_of_the_run() {
        let sample = Sample::new(8).logged(3, 4).detected();
        let (page, data, notes) = sample.report();
        assert_eq!(notes, [""; 0]);
        let run = &data["runs"][0];
        assert_eq!((&run["name"], &run["planned_epochs"]), (&json!("shapes-1"), &json!(12)));
        assert_eq!(run["steps"]["step"], json!((1..=12).collect::<Vec<_>>()));
        assert_eq!(run["steps"]["classification_loss"]["mean"][2], json!(0.33333));
        assert_eq!(run["steps"]["gradient_norm"]["mean"][0], Value::Null);
        assert_eq!(
            (&run["epochs"][2]["validation"]["AP"], &run["settings"]["run.epochs"]),
            (&json!(0.03), &json!("12"))
        );
        let results = &run["results"];
        let objects = sample.dataset.annotations().len();
        assert_eq!(results["counts"], json!({"objects": objects, "detections": objects, "right": objects - 1}));
        assert_eq!(results["rule"], json!({"iou": 0.5, "score": 0.05}));
        let cells = results["confusions"].as_array().unwrap();
        assert_eq!(cells.iter().map(|cell| cell["count"].as_u64().unwrap()).sum::<u64>(), objects as u64);
        let wrong: Vec<_> = cells.iter().filter(|cell| cell["truth"] != cell["prediction"]).collect();
        assert_eq!((wrong.len(), &wrong[0]["images"]), (1, &results["worst"]), "{wrong:?}");
        let image = &results["images"][results["worst"][0].as_u64().unwrap() as usize];
        let rectangle = sample.dataset.annotations()[0].rectangle;
        assert_eq!(image["objects"][0]["box"][2].as_f64(), Some(rectangle.x + rectangle.width));
        assert_eq!(image["detections"][0]["score"], json!(0.72543));
        assert!(image["jpeg"].as_str().is_some_and(|jpeg| jpeg.starts_with("/9j/")));
        assert!(results["classes"].as_array().unwrap().len() == 5 && results["curves"][1]["iou50"][100].is_number());
        assert!(page.len() < MAX_SIZE);
    }

    #[test]
    fn names_cannot_become_markup() {
        let names = [HOSTILE.to_owned(), "a \"b\" 'c' & d".to_owned(), "e\0f\u{2028}".to_owned()];
        let sample = Sample::of(tempfile::tempdir().unwrap(), unreadable(&names)).logged(1, 1);
        let config = sample.run().join("config.yaml");
        let text = format!("{}# {HOSTILE}\n", fs::read_to_string(&config).unwrap());
        let (page, data, notes) = sample.with("config.yaml", &text).report();
        let (clean, ..) = Sample::new(1).report();
        for mark in ["<script", "</script", "<!--"] {
            assert_eq!(page.matches(mark).count(), clean.matches(mark).count(), "{mark}");
        }
        assert!(data["runs"][0]["config"].as_str().unwrap().contains(HOSTILE));
        assert_eq!(notes, [""; 0]);
    }

    #[test]
    fn images_that_cannot_be_read_are_explained() {
        let folder = tempfile::tempdir().unwrap();
        let sample = Sample::new(3).detected();
        let (dataset, _) = Dataset::read_coco(&sample.folder.path().join("val.json"), OnProblem::Keep).unwrap();
        let results = results::Results::new(&dataset.with_folder(folder.path()), &[]);
        assert!(!results.images.is_empty());
        assert!(results.images.iter().all(|image| image.jpeg.is_none() && image.problem.is_some()));
        assert_eq!((results.best.len(), results.counts.right), (0, 0));
    }

    #[test]
    fn runs_without_results_are_reported_with_what_is_missing() {
        let (_, data, notes) = Sample::new(2).report();
        assert_eq!((notes, &data["runs"][0]["results"]), (vec![], &Value::Null), "a run before its first validation");
        let (_, data, notes) = Sample::new(2).with("best.detections.json", "[{}]").report();
        assert!(data["runs"][0]["results"].is_null() && notes[0].contains("no results: "), "{notes:?}");
        let sample = Sample::new(2).detected();
        fs::remove_file(sample.folder.path().join("val.json")).unwrap();
        let (_, data, notes) = sample.report();
        assert!(notes[0].contains("no results: cannot read the validation data"), "{notes:?}");
        assert_eq!(data["runs"][0]["notes"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn damaged_lines_are_named_and_an_unfinished_one_is_not() {
        let line = r#"{"step":1,"epoch":1,"classification_loss":1.5}"#;
        let log = format!("{line}\n\u{0}\u{0}\n{{\"step\":2\n{line}\n{{\"step\":3,\"ep");
        let (_, data, notes) = Sample::new(1).with("log.jsonl", &log).with("sessions.jsonl", "[1]\n").report();
        assert_eq!(data["runs"][0]["steps"]["step"], json!([1, 1]));
        let expected = ["sessions.jsonl is damaged; left out line 1", "log.jsonl is damaged; left out lines 2, 3"];
        assert!(notes.iter().zip(expected).all(|(note, expected)| note.ends_with(expected)), "{notes:?}");
    }

    #[test]
    fn several_runs_have_names_of_their_own_and_other_folders_are_refused() {
        let [first, second] = [Sample::new(1), Sample::new(1)];
        let runs = [first.run(), second.run()];
        write(&runs, &first.folder.path().join("both.html")).unwrap();
        let names: Vec<_> = ReportData::read(&runs).unwrap().runs.into_iter().map(|run| run.name).collect();
        assert_eq!(names, ["shapes-1 (1)", "shapes-1 (2)"]);
        let error = ReportData::read(&[first.folder.path().to_owned()]).unwrap_err().to_string();
        assert!(error.contains("contains no run") && error.contains("trainer fit"), "{error}");
    }

    #[test]
    fn long_runs_with_many_classes_make_a_small_file_that_keeps_spikes() {
        let names: Vec<_> = (0..200).map(|class| format!("class {class} of a long name")).collect();
        let sample = Sample::of(tempfile::tempdir().unwrap(), unreadable(&names)).logged(100, 300);
        let log = fs::read_to_string(sample.run().join("log.jsonl")).unwrap();
        let (page, data, _) =
            sample.with("log.jsonl", &log.replace(&json!(1.0 / 12_345.0).to_string(), "77.5")).report();
        let steps = &data["runs"][0]["steps"];
        assert_eq!(steps["step"].as_array().unwrap().last(), Some(&json!(30_000)));
        let max = steps["classification_loss"]["max"].as_array().unwrap();
        assert!(max.len() <= 2000 && max.contains(&json!(77.5)) && page.len() < MAX_SIZE, "{} bytes", page.len());
        let (truth, found) = (
            unreadable(&names),
            [0, 1].map(|image| ScoredBox {
                image,
                class_index: 0,
                score: 0.5,
                rectangle: Rectangle { x: 0.0, y: 0.0, width: 6.0, height: 6.0 },
            }),
        );
        let results = results::Results::new(&truth, &found);
        assert_eq!((results.curves.len(), results.curves[0].name.as_str()), (101, "all classes (mean)"));
        assert_eq!((results.curves[0].iou50[0], results.curves[1].iou75[100]), (0.005, 1.0));
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
        let (page, data, notes) = Sample::of(tempfile::tempdir().unwrap(), dataset).detected().report();
        assert_eq!(notes, [""; 0]);
        let images = data["runs"][0]["results"]["images"].as_array().unwrap();
        assert!(images.iter().all(|image| image["jpeg"].is_string()) && images.len() >= 7);
        assert!(page.len() < MAX_SIZE, "{} bytes", page.len());
    }
}
