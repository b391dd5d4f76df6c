//! How a run was made: data, configuration, program, machine, times.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use runtime::machine::peak_memory;

use super::markup::Markup;
use super::material::Material;
use super::text::{DASH, counted, moment};
use crate::machine::Machine;
use crate::progress::duration;
use crate::run::log::Log;

/// Start and end of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// Modification time of its `config.yaml`, which a run writes first.
    pub(super) began: Option<SystemTime>,
    pub(super) ended: SystemTime,
}

impl Times {
    /// The times of a run that ends now.
    pub(super) fn of(folder: &Path) -> Self {
        let began = fs::metadata(folder.join(CONFIG)).and_then(|file| file.modified());
        Self { began: began.ok(), ended: SystemTime::now() }
    }

    /// Time from start to end, including interruptions.
    pub(super) fn between(&self) -> Option<Duration> {
        self.ended.duration_since(self.began?).ok()
    }
}

const CONFIG: &str = "config.yaml";

pub(super) fn draw(material: &Material, log: &Log, times: &Times, markup: &mut Markup) {
    let Machine { program, libtorch, cpu, cores, cuda_devices } = Machine::new();
    let dataset = &material.recipe.dataset;
    let learning: f64 = log.epochs.iter().map(|line| line.seconds).filter(|seconds| seconds.is_finite()).sum();
    let folder = material.folder.canonicalize().unwrap_or_else(|_| material.folder.to_owned());
    let rows = [
        ("Folder", folder.display().to_string()),
        ("Command", material.command.to_owned()),
        ("Started", times.began.map_or_else(|| DASH.to_owned(), moment)),
        ("Finished", moment(times.ended)),
        ("Duration", times.between().map_or_else(|| DASH.to_owned(), |time| duration(time.as_secs_f64()))),
        ("Training time", format!("{}, without validation", duration(learning))),
        (
            "Validation data",
            format!(
                "{} with {} of {} in {}",
                counted(dataset.images().len(), "image", "images"),
                counted(dataset.annotations().len(), "box", "boxes"),
                counted(dataset.classes().len(), "class", "classes"),
                dataset.folder().display()
            ),
        ),
        ("Program", program),
        ("libtorch", libtorch.to_owned()),
        ("CPU", format!("{cpu}, {}", counted(cores, "core", "cores"))),
        ("CUDA devices", cuda_devices.to_string()),
        ("Peak memory", peak_memory().map_or_else(|| DASH.to_owned(), |mebibytes| format!("{mebibytes} MiB"))),
    ];
    markup.element("dl", &[], |markup| {
        for (name, text) in rows {
            markup.element("div", &[], |markup| {
                markup.phrase("dt", &[], name);
                markup.phrase("dd", &[], text);
            });
        }
    });
    match fs::read_to_string(material.folder.join(CONFIG)) {
        Ok(text) => markup.element("details", &[], |markup| {
            markup.phrase("summary", &[], "Configuration, including default values");
            markup.phrase("pre", &[("tabindex", &0)], text.trim_end());
        }),
        Err(error) => {
            markup.phrase("p", &[("class", &"empty")], format!("No configuration: cannot read {CONFIG}: {error}"));
        }
    }
}
