//! The library with a model: spans, errors of rules, and padded batches.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]
#![allow(dead_code, reason = "not every test uses all of the fixture")]

#[path = "cli/fixture.rs"]
mod fixture;

use std::sync::{Arc, Mutex};

use ndarray::Array3;
use runtime::{Detector, DetectorOptions, Engine, EngineOptions, Input, image_file};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use fixture::{MODEL, folder};

/// Records the names of spans, in the order in which they start.
#[derive(Clone, Default)]
struct Names(Arc<Mutex<Vec<&'static str>>>);

impl Subscriber for Names {
    fn enabled(&self, _: &Metadata) -> bool {
        true
    }

    fn new_span(&self, span: &Attributes) -> Id {
        let mut names = self.0.lock().unwrap();
        names.push(span.metadata().name());
        Id::from_u64(names.len() as u64)
    }

    fn record(&self, _: &Id, _: &Record) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[test]
fn every_stage_is_a_span() {
    let folder = folder();
    let detector = Detector::open(&MODEL.1, DetectorOptions::default()).unwrap();
    let names = Names::default();
    // Global, since the network runs in a thread of its own.
    tracing::subscriber::set_global_default(names.clone()).unwrap();
    let image = image_file::read(folder.path().join("1.png")).unwrap();
    detector.detect(&image).unwrap();
    let names = names.0.lock().unwrap();
    let stages: Vec<_> =
        names.iter().filter(|name| ["decode", "prepare", "queue", "infer", "postprocess"].contains(name)).collect();
    // The network runs while the caller waits.
    assert!(
        stages == [&"decode", &"prepare", &"queue", &"infer", &"postprocess"]
            || stages == [&"decode", &"prepare", &"infer", &"queue", &"postprocess"],
        "{stages:?}"
    );
}

#[test]
fn the_error_of_an_unknown_class_lists_the_classes_of_the_model() {
    let mut options = DetectorOptions::default();
    options.rules.classes = Some(vec!["dog".to_owned()]);
    let error = Detector::open(&MODEL.1, options).unwrap_err().to_string();
    assert!(error.contains("dog") && error.contains("cat"), "{error}");
}

/// Padding is used on GPUs, where a new batch size costs as much as many runs.
#[test]
fn padding_a_batch_does_not_change_outputs() {
    let engine = Engine::open(&MODEL.1, &EngineOptions::default()).unwrap();
    let image =
        |seed: usize| Array3::from_shape_fn((3, 64, 96), |(c, y, x)| ((x * y + 7 * c + seed) % 11) as f32 / 5.0 - 1.0);
    let images = [image(0), image(3)];
    let inputs = images.each_ref().map(|image| Input::from(image.view()));
    let inputs = inputs.each_ref();
    let expected = engine.run_inputs(&inputs, 0).unwrap().into_dense().unwrap();
    for batch in [1, 2, 5] {
        let found = engine.run_inputs(&inputs, batch).unwrap().into_dense().unwrap();
        assert_eq!(found.scores().dim(), expected.scores().dim());
        let near = |a: &f32, b: &f32| (a - b).abs() <= 1e-6;
        assert!(found.scores().iter().zip(&expected.scores()).all(|(a, b)| near(a, b)), "{batch}");
        assert!(found.offsets().iter().zip(&expected.offsets()).all(|(a, b)| near(a, b)), "{batch}");
    }
}
