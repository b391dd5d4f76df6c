//! Data that `trainer fit` takes, and data that it refuses.

use std::fs;

use serde_json::{Value, json};

use crate::project::{CONFIG, Project, assert_contains, stderr, stdout, trainer};

#[test]
fn several_data_sets_train_as_one_and_images_are_not_opened_again() {
    let project = Project::new();
    // A second set whose file names, image ids and class ids collide with the first's.
    let mut coco = project.json("shapes/val.json");
    coco["categories"][0]["name"] = "moon".into();
    fs::write(project.path().join("more.json"), coco.to_string()).unwrap();
    let [one, more] =
        ["annotations: shapes/train.json, images: shapes/train", "annotations: more.json, images: shapes/val"];
    let train = format!("[{{{one}}}, {{{more}, repeat: 2}}]");
    let before = "{annotations: shapes/train.json, images: shapes/train}";
    assert!(CONFIG.contains(before));
    project.configure(&CONFIG.replace(before, &train));

    let check = trainer(project.path(), &["check", "--json", "check.json"]);
    let table = stdout(&check);
    assert_eq!(check.status.code(), Some(0), "{table}");
    let parts =
        ["training, 2 data sets: 9 images, ", "more.json: 3 images, ", ", 2 times in an epoch", "12 images per epoch"];
    assert_contains(&table, &parts);
    let report = project.json("check.json");
    assert_eq!((&report["images_per_epoch"], &report["train"]["sources"][1]["repeat"]), (&12.into(), &2.into()));

    let message = project.fitted(&[]);
    assert_contains(&message, &["9 training images (12 in an epoch), 3 validation images, 6 classes"]);
    let classes = project.checkpoint("runs/latest/last.safetensors").spec.classes;
    assert_eq!(classes.iter().map(|class| (class.id, class.name.as_str())).next_back(), Some((6, "moon")));

    // An image that is damaged without a trace in size and time is found by decoding only.
    let image = project.path().join("shapes/train/00002.png");
    let (size, time) = (image.metadata().unwrap().len(), image.metadata().unwrap().modified().unwrap());
    let damage = |time| {
        fs::write(&image, vec![0; size as usize]).unwrap();
        fs::File::options().write(true).open(&image).unwrap().set_modified(time).unwrap();
    };
    damage(time);
    assert_contains(&project.refused(&[]), &["00002.png", "saved after step"]);
    damage(time + std::time::Duration::from_secs(1));
    assert_contains(&project.refused(&[]), &["1 of 6 images is missing in", "00002.png; fix them"]);
}

#[test]
fn coco_and_csv_data_train_the_same_weights() {
    let project = Project::with_run();
    for split in ["train", "val"] {
        let coco = project.json(&format!("shapes/{split}.json"));
        let find = |list: &str, id: &Value| -> Value {
            coco[list].as_array().unwrap().iter().find(|entry| entry["id"] == *id).unwrap().clone()
        };
        let mut rows = String::new();
        for annotation in coco["annotations"].as_array().unwrap() {
            let [x, y, width, height] = [0, 1, 2, 3].map(|i| annotation["bbox"][i].as_f64().unwrap());
            let file = find("images", &annotation["image_id"])["file_name"].as_str().unwrap().to_owned();
            let class = find("categories", &annotation["category_id"])["name"].as_str().unwrap().to_owned();
            rows += &format!("{file},{x},{y},{},{},{class}\n", x + width, y + height);
        }
        for image in coco["images"].as_array().unwrap() {
            let has_boxes = coco["annotations"].as_array().unwrap().iter().any(|box_| box_["image_id"] == image["id"]);
            if !has_boxes {
                rows += &format!("{},,,,,\n", image["file_name"].as_str().unwrap());
            }
        }
        fs::write(project.path().join(format!("shapes/{split}.csv")), rows).unwrap();
        let classes = coco["categories"].as_array().unwrap();
        let classes = classes.iter().map(|class| format!("{},{}\n", class["name"].as_str().unwrap(), class["id"]));
        fs::write(project.path().join("shapes/classes.csv"), classes.collect::<String>()).unwrap();
    }
    let config = CONFIG.replace(".json, ", ".csv, classes: shapes/classes.csv, ");
    project.configure(&config);
    project.fitted(&["--out", "csv"]);
    assert!(project.checkpoint("csv/last.safetensors") == project.checkpoint("run/last.safetensors"));

    // CSV has no image sizes, so an unreadable image can be used neither for training nor for validation.
    for broken in ["train/00001.png", "val/00001.png"] {
        fs::write(project.path().join("shapes").join(broken), b"no image").unwrap();
    }
    assert_contains(&project.refused(&["--out", "refused"]), &["00001.png", "bad_annotations: drop"]);
    project.configure(&config.replace("\nrun:", "\n  bad_annotations: drop\nrun:"));
    let message = project.fitted(&["--out", "dropped"]);
    assert_contains(&message, &["5 training images, 2 validation images"]);
    assert!(trainer(project.path(), &["check"]).status.success());
}

#[test]
fn validation_may_lack_classes_and_have_other_ids_but_no_other_classes() {
    let project = Project::new();
    // Only disks are left, under another id.
    project.edit_json("shapes/val.json", |coco| {
        coco["categories"] = json!([{"id": 77, "name": "disk"}]);
        for annotation in coco["annotations"].as_array_mut().unwrap() {
            annotation["category_id"] = 77.into();
        }
    });
    let output = trainer(project.path(), &["check"]);
    assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
    project.fitted(&[]);
    let output = trainer(project.path(), &["eval", "--data", "shapes/val.json", "--images", "shapes/val"]);
    assert!(output.status.success(), "{}", stderr(&output));

    project.edit_json("shapes/val.json", |coco| coco["categories"][0]["name"] = "moon".into());
    let message =
        "classes that are not in the training data (disk, ring, square, triangle, star): moon; list all of them";
    let output = trainer(project.path(), &["check"]);
    assert_eq!(output.status.code(), Some(3));
    assert_contains(&stdout(&output), &[message]);
    assert_contains(&project.refused(&[]), &[message]);
}

#[test]
fn training_without_boxes_is_refused_and_without_matched_boxes_warned_about() {
    let change = |change: &dyn Fn(&mut Value)| {
        let project = Project::new();
        project.edit_annotations(|coco| coco["annotations"].as_array_mut().unwrap().iter_mut().for_each(change));
        project
    };
    let project = change(&|annotation| annotation["iscrowd"] = 1.into());
    assert_contains(&project.refused(&[]), &["no boxes to learn from: 6 images,"]);
    assert_eq!(trainer(project.path(), &["check"]).status.code(), Some(3));

    let project = change(&|annotation| annotation["bbox"] = json!([0.1, 0.2, 0.3, 0.4]));
    let output = project.fit(&[]);
    assert_contains(&stderr(&output), &["no box matches an anchor", "coordinates from 0 to 1"]);
}

#[test]
fn invalid_annotations_are_refused_or_dropped() {
    let project = Project::new();
    project.edit_annotations(|coco| coco["annotations"][0]["bbox"] = json!([1, 1, 0, 5]));
    assert_contains(&project.refused(&[]), &["train.json", "area", "bad_annotations: drop"]);
    project.configure(&CONFIG.replace("\nrun:", "\n  bad_annotations: drop\nrun:"));
    let message = project.fitted(&[]);
    assert_contains(&message, &["warning", "train.json", "area"]);

    project.configure(CONFIG);
    for (field, value) in [("category_id", 77), ("image_id", 99_999)] {
        let project = Project::new();
        project.edit_annotations(|coco| coco["annotations"][0][field] = value.into());
        assert_contains(&project.refused(&[]), &["train.json", &value.to_string()]);
    }
    project.edit_annotations(|coco| coco["annotations"][0]["bbox"] = json!([900, 900, 10, 10]));
    assert_contains(&project.refused(&[]), &["train.json", "outside"]);
}

#[test]
fn errors_name_missing_unreadable_and_wrongly_sized_images() {
    let project = Project::new();
    project.edit_annotations(|coco| coco["images"][2]["file_name"] = "gone.png".into());
    assert_contains(&project.refused(&[]), &["gone.png", "train.json", "bad_annotations: drop"]);
    project.configure(&CONFIG.replace("\nrun:", "\n  bad_annotations: drop\nrun:"));
    assert_contains(
        &project.fitted(&[]),
        &["warning", "1 image that cannot be read, dropped: gone.png (not found", "5 training images"],
    );

    let project = Project::new();
    project.edit_annotations(|coco| coco["images"][2]["width"] = 640.into());
    assert_contains(&project.refused(&[]), &["64x64", "640x64"]);

    let project = Project::new();
    fs::write(project.path().join("shapes/val/00001.png"), b"no image").unwrap();
    assert_contains(&project.refused(&[]), &["1 of 3", "00001.png", "val.json", "bad_annotations: drop"]);
}
