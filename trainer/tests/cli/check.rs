//! `trainer check`.

use std::fs;

use serde_json::json;

use crate::project::{CONFIG, Project, assert_contains, stderr, stdout, trainer};

#[test]
fn check_reports_statistics_and_problems_of_the_data() {
    let project = Project::new();
    let sound = trainer(project.path(), &["check", "--draw", "drawn", "--draw-augmented", "seen", "--count", "2"]);
    assert!(sound.status.success(), "{}", stderr(&sound));
    let table = stdout(&sound);
    assert_contains(&table, &["6 images", "3 images", "with anchor", "disk", "64 x 64"]);
    assert!(!table.contains("anchors: "), "{table}");
    for folder in ["drawn", "seen"] {
        let mut drawn = fs::read_dir(project.path().join(folder)).unwrap().map(|entry| entry.unwrap().path());
        let image = runtime::image_file::read(drawn.next().unwrap()).unwrap();
        assert_eq!((image.dimensions(), drawn.count()), ((64, 64), 1));
    }

    // A box of zero area, a duplicate box, a tiny box; an unreadable image, a duplicate image, an image in both splits.
    project.edit_annotations(|coco| {
        coco["annotations"][0]["bbox"] = json!([1, 1, 0, 5]);
        let mut duplicate = coco["annotations"][1].clone();
        duplicate["id"] = 9999.into();
        let mut tiny = duplicate.clone();
        (tiny["id"], tiny["bbox"]) = (10_000.into(), json!([7, 7, 3, 3]));
        coco["annotations"].as_array_mut().unwrap().extend([duplicate, tiny]);
    });
    let image = |path: &str| project.path().join("shapes").join(path);
    fs::write(image("train/00005.png"), b"no image").unwrap();
    fs::copy(image("train/00001.png"), image("train/00004.png")).unwrap();
    fs::copy(image("train/00000.png"), image("val/00002.png")).unwrap();
    let output = trainer(project.path(), &["check", "--json", "check.json"]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert_contains(
        &stdout(&output),
        &["1 box of zero area", "00005.png: not a JPEG, PNG", "00001.png, 00004.png", "00000.png and 00002.png"],
    );
    let report = project.json("check.json");
    let train = &report["train"];
    assert_eq!(train["bad_images"][0]["file"], "00005.png");
    assert_eq!(train["duplicate_boxes"][0]["annotation"], 9999);
    assert_eq!(report["in_both"][0][0], "00000.png");
    assert!(report["suggestion"].is_null(), "it was not requested");
    let unmatched = train["unmatched"].as_array().unwrap();
    assert!(unmatched.iter().any(|entry| entry["annotation"] == 10_000), "{unmatched:?}");
    let classes = train["classes"].as_array().unwrap();
    let boxes: u64 = classes.iter().map(|class| class["all"]["boxes"].as_u64().unwrap()).sum();
    assert_eq!(boxes, train["boxes"].as_u64().unwrap());
}

#[test]
fn check_suggests_anchors_that_match_more_boxes() {
    let project = Project::new();
    // Anchors larger than the images.
    project.configure(&format!("{CONFIG}  anchors: {{sizes: [160, 320, 640, 1280, 2560]}}\n"));
    let output = trainer(project.path(), &["check", "--suggest-anchors", "--json", "check.json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_contains(
        &stdout(&output),
        &["anchors: these match ", " instead of 0.00 % (on 6 images)", "\n    sizes: [", "\n    ratios: ["],
    );
    let report = project.json("check.json");
    let suggestion = &report["suggestion"];
    assert_eq!(suggestion["matched_fraction"][0].as_f64(), Some(0.0));
    assert!(suggestion["matched_fraction"][1].as_f64().unwrap() > 0.0, "{suggestion}");
    assert!(suggestion["anchors"]["sizes"][0].as_f64().unwrap() < 160.0, "{suggestion}");
}

#[test]
fn check_reports_classes_that_training_refuses() {
    let project = Project::new();
    let classes = "{id: 1, name: disk}, {id: 2, name: ring}, {id: 3, name: square}, {id: 4, name: triangle}, \
                   {id: 5, name: star}";
    let check = |classes: &str| {
        project.configure(&CONFIG.replace("\nmodel:", &format!("\nmodel:\n  classes: [{classes}]")));
        let output = trainer(project.path(), &["check"]);
        (output.status.code(), stdout(&output))
    };
    let (code, table) = check(classes);
    assert_eq!(code, Some(0), "{table}");
    let (code, table) = check(&classes.replace("star", "moon"));
    assert_eq!(code, Some(3), "{table}");
    assert_contains(&table, &["`model.classes` (disk, ring, square, triangle, moon): star"]);
    assert_contains(&project.refused(&[]), &["`model.classes`"]);
}

#[test]
fn check_fails_if_no_image_is_left() {
    let project = Project::new();
    project.configure(&CONFIG.replace("\nrun:", "\n  bad_annotations: drop\nrun:"));
    let remove = |index: u32| fs::remove_file(project.path().join(format!("shapes/train/{index:05}.png"))).unwrap();
    (1..6).for_each(remove);
    assert_eq!(trainer(project.path(), &["check"]).status.code(), Some(0), "one image is left");
    remove(0);
    assert_eq!(trainer(project.path(), &["check"]).status.code(), Some(1), "no image is left");
    assert_contains(&project.refused(&[]), &["no usable images: 6 images that cannot be read, dropped: 00000.png"]);
}
