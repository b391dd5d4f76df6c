//! The examples of the library's documentation run.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]
#![allow(dead_code, reason = "not every test uses all of the fixture")]

#[path = "cli/fixture.rs"]
mod fixture;
#[path = "../examples/folder.rs"]
mod for_a_folder;
#[path = "../examples/image.rs"]
mod for_an_image;
#[path = "../examples/raw_outputs.rs"]
mod from_raw_outputs;

use fixture::{MODEL, folder};

#[test]
fn examples_find_the_same_objects() {
    let folder = folder();
    let image = folder.path().join("1.png");
    let detections = from_raw_outputs::detect(&MODEL.1, &image).unwrap();
    let lines = for_an_image::detect(&MODEL.1, &image).unwrap();
    assert!(!detections.is_empty());
    // The model's own threshold is higher than that of the example.
    assert!(lines.lines().count() > detections.len(), "{lines}");

    let lines = for_a_folder::detect(&MODEL.1, folder.path()).unwrap();
    assert!(lines.len() == 4 && lines[0].ends_with(&format!("1.png: {} objects", detections.len())), "{lines:?}");
    assert!(lines[1].contains("2.png: not a JPEG"), "{lines:?}");
}
